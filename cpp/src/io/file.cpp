#include "file.hpp"

#include <cerrno>
#include <random>
#include <system_error>

#include <fcntl.h>
#include <sys/stat.h>
#if defined(_WIN32)
#include <io.h>
#else
#include <unistd.h>
#endif

#include <deepnet/error.hpp>

namespace deepnet {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void throw_file_error(const std::string& what, const std::string& problem, const std::string& path,
                                   int error_number) {
  const std::string reason = std::generic_category().message(error_number);
  throw FileError("[" + what + "] " + problem + " '" + path + "': " + reason, error_number);
}

fs::path to_path(const std::string& what, const std::string& path) {
  if (path.empty() || path.find('\0') != std::string::npos) {
    throw ValueError("[" + what + "] expected a path without null characters, got '" + path + "'");
  }
  return fs::u8path(path);
}

// The file that writing to `path` would write: what the last of a chain of symbolic links names.
fs::path follow_links(fs::path path) {
  std::error_code error;
  for (int link = 0; link < 40 && fs::is_symlink(path, error); ++link) {
    const fs::path to = fs::read_symlink(path, error);
    if (error) break;
    path = to.is_absolute() ? to : path.parent_path() / to;
  }
  return path;
}

std::string random_name() {
  std::random_device source;
  char name[40];
  std::snprintf(name, sizeof name, ".deepnet-%08x%08x.tmp", source(), source());
  return name;
}

#if defined(_WIN32)

std::FILE* open_to_read(const fs::path& path) { return _wfopen(path.c_str(), L"rb"); }
int create_new(const fs::path& path, int) {
  return _wopen(path.c_str(), _O_CREAT | _O_EXCL | _O_WRONLY | _O_BINARY | _O_NOINHERIT, _S_IREAD | _S_IWRITE);
}
bool may_write(const fs::path& path) { return _waccess(path.c_str(), 2) == 0; }
void copy_permissions(int, const fs::path&) {}
int write_some(int descriptor, const void* from, std::size_t bytes) {
  return _write(descriptor, from, static_cast<unsigned>(bytes));
}
bool sync_file(int descriptor) { return _commit(descriptor) == 0; }
bool close_file(int descriptor) { return _close(descriptor) == 0; }
void sync_folder(const fs::path&) {}

#else

std::FILE* open_to_read(const fs::path& path) { return std::fopen(path.c_str(), "rb"); }
int create_new(const fs::path& path, int mode) {
  return ::open(path.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, mode);
}
bool may_write(const fs::path& path) { return ::access(path.c_str(), W_OK) == 0; }

// A file system without permissions refuses; the new file is then no more open than create_new made it.
void copy_permissions(int descriptor, const fs::path& from) {
  struct stat status;
  if (::stat(from.c_str(), &status) == 0 && ::fchmod(descriptor, status.st_mode & 07777) != 0) errno = 0;
}

std::ptrdiff_t write_some(int descriptor, const void* from, std::size_t bytes) {
  std::ptrdiff_t written;
  do {
    written = ::write(descriptor, from, bytes);
  } while (written < 0 && errno == EINTR);
  return written;
}
bool sync_file(int descriptor) { return ::fsync(descriptor) == 0; }
bool close_file(int descriptor) { return ::close(descriptor) == 0; }

// Makes the rename itself last. Some file systems cannot, and the file is whole either way.
void sync_folder(const fs::path& folder) {
  const int descriptor = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return;
  ::fsync(descriptor);
  ::close(descriptor);
}

#endif

}  // namespace

// --- InputFile -------------------------------------------------------------------------------------------------

InputFile::InputFile(const char* what, const std::string& path) : what_(what), path_(path) {
  const fs::path file = to_path(what_, path);
  std::error_code error;
  const fs::file_status status = fs::status(file, error);
  if (!fs::exists(status))
    throw_file_error(what_, "cannot open", path, error ? error.default_error_condition().value() : ENOENT);
  if (fs::is_directory(status)) throw_file_error(what_, "cannot open", path, EISDIR);
  if (!fs::is_regular_file(status)) throw_file_error(what_, "expected a regular file, got", path, EINVAL);
  file_ = open_to_read(file);
  if (file_ == nullptr) throw_file_error(what_, "cannot open", path, errno);
  size_ = fs::file_size(file, error);
  if (error) {
    std::fclose(file_);
    throw_file_error(what_, "cannot tell the size of", path, error.default_error_condition().value());
  }
}

InputFile::~InputFile() { std::fclose(file_); }

void InputFile::read(void* to, std::size_t bytes) {
  errno = 0;
  if (std::fread(to, 1, bytes, file_) != bytes) throw_file_error(what_, "cannot read", path_, errno ? errno : EIO);
}

std::string InputFile::message(const std::string& problem) const {
  return "[" + what_ + "] '" + path_ + "': " + problem;
}

// --- AtomicFile ------------------------------------------------------------------------------------------------

AtomicFile::AtomicFile(const char* what, const std::string& path) : what_(what), path_(path) {
  target_ = follow_links(to_path(what_, path));
  std::error_code error;
  const fs::file_status status = fs::status(target_, error);
  const bool exists = fs::exists(status);
  if (fs::is_directory(status)) fail("cannot write", EISDIR);
  if (exists && !fs::is_regular_file(status)) fail("expected a regular file, got", EINVAL);
  if (exists && !may_write(target_)) fail("cannot write", EACCES);
  for (int attempt = 0; attempt < 100 && descriptor_ < 0; ++attempt) {
    temporary_ = target_.parent_path() / random_name();
    errno = 0;
    descriptor_ = create_new(temporary_, exists ? 0600 : 0666);
    if (descriptor_ < 0 && errno != EEXIST) break;
  }
  if (descriptor_ < 0) fail("cannot create a file beside", errno);
  if (exists) copy_permissions(descriptor_, target_);
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) close_file(descriptor_);
  std::error_code ignored;
  if (!temporary_.empty()) fs::remove(temporary_, ignored);
}

void AtomicFile::write(const void* from, std::size_t bytes) {
  constexpr std::size_t most = std::size_t{1} << 30;  // Linux writes at most 2 GiB at once, Windows 4
  for (const char* next = static_cast<const char*>(from); bytes > 0;) {
    errno = 0;
    const std::ptrdiff_t written = write_some(descriptor_, next, bytes < most ? bytes : most);
    if (written <= 0) fail("cannot write", errno ? errno : ENOSPC);
    next += written;
    bytes -= static_cast<std::size_t>(written);
  }
}

void AtomicFile::commit() {
  if (!sync_file(descriptor_)) fail("cannot write", errno);
  const int descriptor = descriptor_;
  descriptor_ = -1;
  if (!close_file(descriptor)) fail("cannot write", errno);
  std::error_code error;
  fs::rename(temporary_, target_, error);
  if (error) fail("cannot replace", error.default_error_condition().value());
  temporary_.clear();
  sync_folder(target_.parent_path());
}

void AtomicFile::fail(const std::string& problem, int error_number) const {
  throw_file_error(what_, problem, path_, error_number);
}

}  // namespace deepnet
