// Files, whole: reading one of known size, and replacing one so that a crash leaves the old or the new.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>

namespace deepnet {

/// A regular file open for reading. Errors are FileErrors that open with "[what]" and name the path.
class InputFile {
 public:
  InputFile(const char* what, const std::string& path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  std::uint64_t size() const { return size_; }
  /// The next `bytes` bytes.
  void read(void* to, std::size_t bytes);
  /// "[what] 'path': problem", for a ValueError about the content.
  std::string message(const std::string& problem) const;

 private:
  const std::string what_, path_;
  std::FILE* file_ = nullptr;
  std::uint64_t size_ = 0;
};

/// A new file in the folder of the one it is to replace; removed by the destructor unless commit() was reached.
class AtomicFile {
 public:
  AtomicFile(const char* what, const std::string& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* from, std::size_t bytes);
  /// Everything to the disk, then renamed over the target; a target that is a symbolic link stays one.
  void commit();

 private:
  [[noreturn]] void fail(const std::string& problem, int error_number) const;

  const std::string what_, path_;
  std::filesystem::path target_, temporary_;
  int descriptor_ = -1;
};

}  // namespace deepnet
