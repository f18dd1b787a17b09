// The safetensors format (https://huggingface.co/docs/safetensors, "Format"):
//   8 bytes     length of the header, little-endian
//   header      JSON: {"__metadata__": {text: text}, name: {"dtype": "F32", "shape": [..], "data_offsets": [a, b]}, ..}
//   data        the tensors, C-contiguous and little-endian, one after the other without holes
// Every claim of the header is checked against the file's size before memory for a tensor is asked for.
#include "safetensors.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include <nlohmann/json.hpp>

#include <deepnet/error.hpp>

#include "file.hpp"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "deepnet reads and writes safetensors on little-endian machines only"
#endif

namespace deepnet {
namespace {

using nlohmann::json;

constexpr std::uint64_t most_header = 100'000'000;  // the format's own limit
const char* const metadata_key = "__metadata__";

// --- element types -----------------------------------------------------------------------------------------------

float from_half(std::uint16_t half) {
  const std::uint32_t sign = half >> 15, exponent = half >> 10 & 31, fraction = half & 1023;
  if (exponent == 0) {  // a multiple of 2^-24
    const float value = static_cast<float>(fraction) / 16777216.0f;
    return sign ? -value : value;
  }
  const std::uint32_t bits = sign << 31 | (exponent == 31 ? 255u : exponent + 112u) << 23 | fraction << 13;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

float from_bfloat(std::uint16_t upper_half) {
  const std::uint32_t bits = static_cast<std::uint32_t>(upper_half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class T>
float from_number(T value) {
  return static_cast<float>(value);
}

template <class T, float (*convert)(T)>
void convert_all(const char* from, std::size_t n, float* to) {
  for (std::size_t i = 0; i < n; ++i) {
    T value;
    std::memcpy(&value, from + i * sizeof value, sizeof value);
    to[i] = convert(value);
  }
}

float from_bool(std::uint8_t value) { return value != 0 ? 1.0f : 0.0f; }

struct ElementType {
  const char* name;
  std::size_t bytes;
  DType becomes;
  void (*convert)(const char* from, std::size_t n, float* to);  // null: stays as it is
};

const ElementType element_types[] = {
    {"F32", 4, DType::float32, nullptr},
    {"I64", 8, DType::int64, nullptr},
    {"F16", 2, DType::float32, convert_all<std::uint16_t, from_half>},
    {"BF16", 2, DType::float32, convert_all<std::uint16_t, from_bfloat>},
    {"F64", 8, DType::float32, convert_all<double, from_number>},
    {"I32", 4, DType::float32, convert_all<std::int32_t, from_number>},
    {"I16", 2, DType::float32, convert_all<std::int16_t, from_number>},
    {"I8", 1, DType::float32, convert_all<std::int8_t, from_number>},
    {"U8", 1, DType::float32, convert_all<std::uint8_t, from_number>},
    {"BOOL", 1, DType::float32, convert_all<std::uint8_t, from_bool>},
};

// --- header ------------------------------------------------------------------------------------------------------

struct Entry {
  std::string dtype;
  std::vector<Index> shape;
  std::vector<Index> offsets;
  bool has_dtype = false, has_shape = false, has_offsets = false;
};

struct Header {
  std::map<std::string, Entry> entries;
  std::map<std::string, std::string> metadata;
};

// Takes the parser's events and accepts the format's grammar only, so that no other value, depth or repetition of
// a key is ever stored.
class HeaderReader : public nlohmann::json_sax<json> {
 public:
  explicit HeaderReader(const InputFile& file) : file_(file) {}

  Header header;

  bool key(string_t& name) override {
    key_ = name;
    bool fresh = true;
    if (place_ == Place::top && name != metadata_key) {
      fresh = header.entries.emplace(name, Entry()).second;
      entry_name_ = name;
    } else if (place_ == Place::top) {
      fresh = !has_metadata_;
      has_metadata_ = true;
    } else if (place_ == Place::metadata) {
      fresh = header.metadata.emplace(name, "").second;
    } else {
      bool* seen = name == "dtype"          ? &entry().has_dtype
                   : name == "shape"        ? &entry().has_shape
                   : name == "data_offsets" ? &entry().has_offsets
                                            : nullptr;
      if (seen == nullptr) fail("tensor '" + entry_name_ + "' has an unknown key '" + name + "'");
      fresh = !*seen;
      *seen = true;
    }
    if (!fresh) fail("the key '" + name + "' appears twice");
    return true;
  }

  bool start_object(std::size_t) override {
    if (place_ == Place::start) {
      place_ = Place::top;
    } else if (place_ == Place::top) {
      place_ = key_ == metadata_key ? Place::metadata : Place::tensor;
    } else {
      unexpected("an object");
    }
    return true;
  }

  bool end_object() override {
    if (place_ == Place::tensor && !(entry().has_dtype && entry().has_shape && entry().has_offsets)) {
      fail("tensor '" + entry_name_ + "' lacks dtype, shape or data_offsets");
    }
    place_ = Place::top;
    return true;
  }

  bool start_array(std::size_t) override {
    if (place_ != Place::tensor || key_ == "dtype") unexpected("an array");
    place_ = Place::numbers;
    return true;
  }

  bool end_array() override {
    place_ = Place::tensor;
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ != Place::numbers) unexpected("a number");
    const bool is_shape = key_ == "shape";
    std::vector<Index>& list = is_shape ? entry().shape : entry().offsets;
    if (value > static_cast<std::uint64_t>(std::numeric_limits<Index>::max())) unexpected("too large a number");
    if (list.size() == (is_shape ? Shape::max_rank : 2)) {
      fail("tensor '" + entry_name_ + "': expected at most " + (is_shape ? "8 sizes" : "2 offsets") + ", got more");
    }
    list.push_back(static_cast<Index>(value));
    return true;
  }

  bool string(string_t& value) override {
    if (place_ == Place::metadata) {
      header.metadata[key_] = value;
    } else if (place_ == Place::tensor && key_ == "dtype") {
      entry().dtype = value;
    } else {
      unexpected("a string");
    }
    return true;
  }

  bool null() override { unexpected("null"); }
  bool boolean(bool) override { unexpected("a boolean"); }
  bool number_integer(number_integer_t) override { unexpected("a negative number"); }
  bool number_float(number_float_t, const string_t&) override {
    unexpected("a number that is not an integer in range");
  }
  bool binary(binary_t&) override { unexpected("binary data"); }
  // The parser's own message may repeat bytes that are not UTF-8.
  bool parse_error(std::size_t position, const std::string&, const json::exception&) override {
    fail("the header is not JSON at its byte " + std::to_string(position));
  }

 private:
  enum class Place { start, top, metadata, tensor, numbers };

  Entry& entry() { return header.entries[entry_name_]; }
  [[noreturn]] void fail(const std::string& problem) const { throw ValueError(file_.message(problem)); }
  [[noreturn]] void unexpected(const std::string& value) const {
    fail(place_ == Place::start ? "the header is not a JSON object" : "the key '" + key_ + "' holds " + value);
  }

  const InputFile& file_;
  Place place_ = Place::start;
  std::string key_, entry_name_;
  bool has_metadata_ = false;
};

Header read_header(InputFile& file, std::uint64_t& data_bytes) {
  const auto fail = [&](const std::string& problem) { throw ValueError(file.message(problem)); };
  std::uint64_t length = 0;
  if (file.size() < 10) fail("too short for a safetensors file: " + std::to_string(file.size()) + " bytes");
  file.read(&length, sizeof length);
  if (length < 2 || length > most_header || length > file.size() - 8) {
    fail("not a safetensors file: expected a header of 2 bytes to 100 MB within the file's " +
         std::to_string(file.size()) + " bytes, got a length of " + std::to_string(length));
  }
  std::string text(length, '\0');
  file.read(&text[0], text.size());
  // The parser would skip a byte order mark or white space, and take a null character for the end.
  if (text[0] != '{' || text.find('\0') != std::string::npos) fail("the header is not a JSON object");
  HeaderReader reader(file);
  json::sax_parse(text, &reader);
  data_bytes = file.size() - 8 - length;
  return std::move(reader.header);
}

// --- tensors -----------------------------------------------------------------------------------------------------

struct Claim {
  std::string name;
  const ElementType* type;
  Shape shape;
  std::uint64_t begin, end;
};

Claim check_entry(const InputFile& file, const std::string& name, const Entry& entry, std::uint64_t data_bytes) {
  const auto fail = [&](const std::string& problem) {
    throw ValueError(file.message("tensor '" + name + "': " + problem));
  };
  const auto type = std::find_if(std::begin(element_types), std::end(element_types),
                                 [&](const ElementType& t) { return entry.dtype == t.name; });
  if (type == std::end(element_types)) {
    std::string known;
    for (const ElementType& t : element_types) known += (known.empty() ? "" : ", ") + std::string(t.name);
    fail("expected a dtype of " + known + ", got '" + entry.dtype + "'");
  }
  const Shape shape(entry.shape);
  Index elements = 0;
  try {
    elements = shape.size();
  } catch (const ShapeError&) {
    fail("the sizes of its shape " + shape.str() + " overflow");
  }
  if (entry.offsets.size() != 2) fail("expected 2 data_offsets, got " + std::to_string(entry.offsets.size()));
  const auto begin = static_cast<std::uint64_t>(entry.offsets[0]), end = static_cast<std::uint64_t>(entry.offsets[1]);
  if (begin > end || end > data_bytes) {
    fail("expected data_offsets within the " + std::to_string(data_bytes) + " bytes of data, got [" +
         std::to_string(begin) + ", " + std::to_string(end) + "]");
  }
  if (end - begin != static_cast<std::uint64_t>(elements) * type->bytes) {
    fail(std::string(type->name) + " of shape " + shape.str() + " needs " +
         std::to_string(static_cast<std::uint64_t>(elements) * type->bytes) + " bytes, its data_offsets hold " +
         std::to_string(end - begin));
  }
  return {name, &*type, shape, begin, end};
}

// In the order of their data, which they must cover without holes or overlaps.
std::vector<Claim> check_entries(const InputFile& file, const Header& header, std::uint64_t data_bytes) {
  std::vector<Claim> claims;
  for (const auto& [name, entry] : header.entries) claims.push_back(check_entry(file, name, entry, data_bytes));
  std::sort(claims.begin(), claims.end(),
            [](const Claim& a, const Claim& b) { return a.begin != b.begin ? a.begin < b.begin : a.end < b.end; });
  std::uint64_t covered = 0;
  for (const Claim& claim : claims) {
    if (claim.begin != covered) {
      throw ValueError(file.message("tensor '" + claim.name + "' begins at " + std::to_string(claim.begin) +
                                    ", the one before ends at " + std::to_string(covered)));
    }
    covered = claim.end;
  }
  if (covered != data_bytes) {
    throw ValueError(file.message("the tensors end at byte " + std::to_string(covered) + " of " +
                                  std::to_string(data_bytes) + " bytes of data"));
  }
  return claims;
}

Tensor read_tensor(InputFile& file, const Claim& claim) {
  Tensor tensor(claim.shape, claim.type->becomes);
  if (claim.type->convert == nullptr) {
    file.read(tensor.raw(), tensor.bytes());
    return tensor;
  }
  char chunk[16384];
  const std::size_t size = static_cast<std::size_t>(tensor.size()), step = sizeof chunk / claim.type->bytes;
  for (std::size_t done = 0; done < size; done += step) {
    const std::size_t n = std::min(step, size - done);
    file.read(chunk, n * claim.type->bytes);
    claim.type->convert(chunk, n, tensor.data() + done);
  }
  return tensor;
}

}  // namespace

SafeTensors read_safetensors(const char* what, const std::string& path) {
  InputFile file(what, path);
  std::uint64_t data_bytes = 0;
  Header header = read_header(file, data_bytes);
  SafeTensors content;
  for (const Claim& claim : check_entries(file, header, data_bytes)) {
    content.tensors.emplace(claim.name, read_tensor(file, claim));
  }
  content.metadata = std::move(header.metadata);
  return content;
}

SafeTensors read_safetensors(const std::string& path) { return read_safetensors("read_safetensors", path); }

// --- writing -----------------------------------------------------------------------------------------------------

void write_safetensors(const char* what, const std::string& path, const SafeTensors& content) {
  const auto fail = [&](const std::string& problem) { throw ValueError("[" + std::string(what) + "] " + problem); };
  // int64 first, then by name: so every tensor is aligned to its elements, as other readers like it.
  std::vector<std::pair<std::string, const Tensor*>> order;
  for (const auto& [name, tensor] : content.tensors) order.emplace_back(name, &tensor);
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return a.second->dtype() == DType::int64 && b.second->dtype() != DType::int64;
  });
  json header = json::object();
  std::uint64_t end = 0;
  for (const auto& [name, tensor] : order) {
    if (!tensor->defined()) fail("tensor '" + name + "' is undefined");
    if (name == metadata_key) fail("a tensor may not be named '" + name + "'");
    const std::uint64_t begin = end;
    end += tensor->bytes();
    header[name] = {{"dtype", tensor->dtype() == DType::int64 ? "I64" : "F32"},
                    {"shape", std::vector<Index>(tensor->shape().begin(), tensor->shape().end())},
                    {"data_offsets", {begin, end}}};
  }
  if (!content.metadata.empty()) header[metadata_key] = content.metadata;
  std::string text;
  try {
    text = header.dump();
  } catch (const json::exception&) {
    fail("expected names and metadata in UTF-8");
  }
  text.append((8 - text.size() % 8) % 8, ' ');
  const std::uint64_t length = text.size();
  if (length > most_header) fail("names and metadata of " + std::to_string(length) + " bytes exceed 100 MB");

  AtomicFile file(what, path);
  file.write(&length, sizeof length);
  file.write(text.data(), text.size());
  for (const auto& [name, tensor] : order) file.write(tensor->raw(), tensor->bytes());
  file.commit();
}

void write_safetensors(const std::string& path, const SafeTensors& content) {
  write_safetensors("write_safetensors", path, content);
}

}  // namespace deepnet
