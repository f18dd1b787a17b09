// Model files, safetensors and IDX: what is written comes back, and malformed files are refused before anything of
// the size that they claim is allocated.
#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include <deepnet/deepnet.hpp>

#include "check.hpp"

namespace {

using namespace deepnet;
namespace fs = std::filesystem;

// A fresh folder for one test.
class Folder {
 public:
  Folder() : path_(fs::temp_directory_path() / ("deepnet-io-test-" + std::to_string(std::random_device{}()))) {
    fs::create_directory(path_);
  }
  ~Folder() { fs::remove_all(path_); }
  std::string operator/(const std::string& name) const { return (path_ / name).u8string(); }
  std::size_t files() const {
    return static_cast<std::size_t>(std::distance(fs::directory_iterator(path_), fs::directory_iterator()));
  }

 private:
  const fs::path path_;
};

void put(const std::string& path, const std::string& bytes) {
  std::ofstream(fs::u8path(path), std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

std::string get(const std::string& path) {
  std::ifstream file(fs::u8path(path), std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string little_endian(std::uint64_t value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof value);
}

std::string safetensors_file(const std::string& header, const std::string& data) {
  return little_endian(header.size()) + header + data;
}

// What reading a file of these bytes says; empty where it succeeds.
std::string complaint(const std::string& bytes, const std::function<void(const std::string&)>& read) {
  const Folder folder;
  put(folder / "file", bytes);
  try {
    read(folder / "file");
    return "";
  } catch (const ValueError& error) {
    return error.what();
  }
}

std::string read_complaint(const std::string& bytes) {
  return complaint(bytes, [](const std::string& path) { read_safetensors(path); });
}

bool equal(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && a.dtype() == b.dtype() && std::memcmp(a.raw(), b.raw(), a.bytes()) == 0;
}

std::vector<float> values(const Tensor& t) { return {t.data(), t.data() + t.size()}; }

// --- safetensors -------------------------------------------------------------------------------------------------

TEST(tensors_come_back_as_they_were) {
  const Folder folder;
  SafeTensors content;
  content.tensors["weight"] = Tensor::from({1, -2, 3.5f, 0, 1e-40f, 6}, {2, 3});
  content.tensors["a scalar"] = Tensor::from({7}, {});
  content.tensors["\xc3\xa9\"\\\n"] = Tensor({0, 4});
  content.tensors["labels"] = Tensor::labels({-1, 5, Index{1} << 60});
  content.metadata = {{"format", "pt"}, {"note", "\xe2\x82\xac"}};
  write_safetensors(folder / "m.safetensors", content);
  CHECK(folder.files() == 1);
  const SafeTensors back = read_safetensors(folder / "m.safetensors");
  CHECK(back.metadata == content.metadata);
  CHECK(back.tensors.size() == content.tensors.size());
  for (const auto& [name, tensor] : content.tensors) CHECK(equal(back.tensors.at(name), tensor));
  const std::string bytes = get(folder / "m.safetensors");
  CHECK(bytes[0] % 8 == 0 && bytes[8] == '{');
  write_safetensors(folder / "again", back);
  CHECK(get(folder / "again") == bytes);
  write_safetensors(folder / "empty", {});
  CHECK(read_safetensors(folder / "empty").tensors.empty());
}

TEST(other_element_types_become_float32) {
  const auto read = [](const std::string& dtype, const std::string& data, int n) {
    const Folder folder;
    put(folder / "f", safetensors_file(R"({"t":{"dtype":")" + dtype + R"(","shape":[)" + std::to_string(n) +
                                           R"(],"data_offsets":[0,)" + std::to_string(data.size()) + "]}}",
                                       data));
    return values(read_safetensors(folder / "f").tensors.at("t"));
  };
  using std::string;
  using Floats = std::vector<float>;
  const float inf = std::numeric_limits<float>::infinity();
  CHECK(read("F16", string("\x00\x3c\x00\xc0\xff\x7b\x00\x7c\x01\x00\x00\x80", 12), 6) ==
        Floats({1, -2, 65504, inf, 5.9604645e-8f, 0}));
  CHECK(std::isnan(read("F16", string("\x01\x7e", 2), 1)[0]));
  CHECK(read("BF16", string("\x80\x3f\x20\xc1", 4), 2) == Floats({1, -10}));
  CHECK(read("F64", string("\0\0\0\0\0\0\xf8\x3f", 8), 1) == Floats({1.5f}));
  CHECK(read("I32", string("\xff\xff\xff\xff\x00\x01\x00\x00", 8), 2) == Floats({-1, 256}));
  CHECK(read("I16", string("\xfe\xff", 2), 1) == Floats({-2}));
  CHECK(read("I8", string("\xfd\x7f", 2), 2) == Floats({-3, 127}));
  CHECK(read("U8", string("\xfd\x7f", 2), 2) == Floats({253, 127}));
  CHECK(read("BOOL", string("\x01\x00", 2), 2) == Floats({1, 0}));
  CHECK(read("U8", string(100'000, '\x05'), 100'000) == Floats(100'000, 5.0f));
}

TEST(malformed_lengths_are_refused) {
  const std::string good = safetensors_file("{}", "");
  CHECK(read_complaint(good).empty());
  for (std::size_t n = 0; n < good.size(); ++n) CHECK(!read_complaint(good.substr(0, n)).empty());
  for (const std::uint64_t length : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{3}, std::uint64_t{100'000'001},
                                     std::uint64_t{1} << 62, ~std::uint64_t{0}, ~std::uint64_t{0} - 7}) {
    CHECK(read_complaint(little_endian(length) + "{}").find("header") != std::string::npos);
  }
  CHECK(!read_complaint(good + "x").empty());
}

TEST(malformed_headers_are_refused) {
  const std::string t = R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})";
  CHECK(read_complaint(safetensors_file(R"({"t":)" + t + "}  ", "1234")).empty());
  const std::string headers[] = {
      "[]",
      "  {}",
      "\"ab\"",
      "null",
      "12",
      "{",
      "{}}",
      "{}{}",
      "{},",
      R"({"t"})",
      R"({"t":})",
      R"({"t":1})",
      R"({"t":null})",
      R"({"t":[]})",
      R"({"t":{}})",
      R"({"t":"F32"})",
      R"({"t":true})",
      R"({'t':)" + t + "}",
      R"({"t":)" + t + ",}",
      "// comment\n{\"t\":" + t + "}",
      "{/**/\"t\":" + t + "}",
      R"({"t":)" + t + R"(,"t":)" + t + "}",  // duplicates, at every level
      R"({"t":)" + t + R"(,"\u0074":)" + t + "}",
      R"({"t":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
      R"({"t":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}})",
      R"({"__metadata__":{"a":"1","a":"1"},"t":)" + t + "}",
      R"({"__metadata__":{},"__metadata__":{},"t":)" + t + "}",
      R"({"__metadata__":1,"t":)" + t + "}",
      R"({"__metadata__":{"a":1},"t":)" + t + "}",
      R"({"__metadata__":{"a":null},"t":)" + t + "}",
      R"({"__metadata__":{"a":{}},"t":)" + t + "}",
      R"({"__metadata__":[],"t":)" + t + "}",
      R"({"t":{"dtype":"F32","shape":[1]}})",  // missing, unknown, of another type
      R"({"t":{"dtype":"F32","data_offsets":[0,4]}})",
      R"({"t":{"shape":[1],"data_offsets":[0,4]}})",
      R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}})",
      R"({"t":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}})",
      R"({"t":{"dtype":"f32","shape":[1],"data_offsets":[0,4]}})",
      R"({"t":{"dtype":32,"shape":[1],"data_offsets":[0,4]}})",
      R"({"t":{"dtype":["F32"],"shape":[1],"data_offsets":[0,4]}})",
      R"({"t":{"dtype":"F32","shape":1,"data_offsets":[0,4]}})",
      R"({"t":{"dtype":"F32","shape":{"0":1},"data_offsets":[0,4]}})",
      R"({"t":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})",  // sizes
      R"({"t":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}})",
      R"({"t":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})",
      R"({"t":{"dtype":"F32","shape":[1e0],"data_offsets":[0,4]}})",
      R"({"t":{"dtype":"F32","shape":["1"],"data_offsets":[0,4]}})",
      R"({"t":{"dtype":"F32","shape":[[1]],"data_offsets":[0,4]}})",
      R"({"t":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}})",
      R"({"t":{"dtype":"F32","shape":[01],"data_offsets":[0,4]}})",
      R"({"t":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}})",
      R"({"t":{"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,4]}})",
      R"({"t":{"dtype":"F32","shape":[18446744073709551617],"data_offsets":[0,4]}})",
      R"({"t":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}})",
      R"({"t":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})",
      R"({"t":{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]}})",
      R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})",  // offsets
      R"({"t":{"dtype":"F64","shape":[1],"data_offsets":[0,4]}})",
      R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,5]}})",
      R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})",
      R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0]}})",
      R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[]}})",
      R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4,4]}})",
      R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}})",
      R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4.0]}})",
      R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
      R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
      R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[9223372036854775807,9223372036854775811]}})",
      R"({"t":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}})",  // and 4 bytes that nobody owns
      R"({"t":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}})",
      R"({"t":{"dtype":"U8","shape":[3],"data_offsets":[1,4]}})",
      R"({"t":)" + t + R"(,"u":)" + t + "}",  // overlaps, holes
      R"({"t":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"u":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
      R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"u":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
      R"({"t":)" + t + R"(,"u":{"dtype":"U8","shape":[0],"data_offsets":[2,2]}})",
      "{\"\xff\":" + t + "}",
      "{\"\xc0\x80\":" + t + "}",
      "{\"\xed\xa0\x80\":" + t + "}",
      "{\"a\nb\":" + t + "}",
      R"({"\ud800":)" + t + "}",
      "\xef\xbb\xbf{\"t\":" + t + "}",
      "{\"t\":" + t + "}" + std::string(1, '\0'),
      "{\"t\":" + t + "}" + std::string(1, '\0') + "}",
      std::string(100'000, '['),
      "{\"a\":" + std::string(100'000, '['),
      R"({"t":{"shape":)" + std::string(100'000, '['),
  };
  for (const std::string& header : headers) {
    const std::string said = read_complaint(safetensors_file(header, "1234"));
    CHECK(!said.empty());
    if (said.empty()) std::printf("  accepted: %.200s\n", header.c_str());
  }
}

TEST(mutations_of_a_good_file_never_crash) {
  const std::string good = safetensors_file(
      R"({"__metadata__":{"a":"b"},"t":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}})", "12345678");
  std::mt19937 random(1);
  int refused = 0;
  for (int i = 0; i < 2000; ++i) {
    std::string bytes = good;
    for (unsigned n = 1 + random() % 3; n > 0; --n) bytes[random() % bytes.size()] = static_cast<char>(random());
    refused += !read_complaint(bytes).empty();
  }
  CHECK(refused > 1500);
}

// --- files -------------------------------------------------------------------------------------------------------

int error_number(const std::function<void()>& action) {
  try {
    action();
  } catch (const FileError& error) {
    return error.error_number;
  }
  return 0;
}

TEST(the_system_s_refusals_arrive_with_errno) {
  const Folder folder;
  CHECK(error_number([&] { load(folder / "none"); }) == ENOENT);
  CHECK(error_number([&] { load(folder / "."); }) == EISDIR);
  CHECK(error_number([&] { write_safetensors(folder / "none/m", {}); }) == ENOENT);
  CHECK(error_number([&] { write_safetensors(folder / ".", {}); }) == EISDIR);
#if defined(__linux__)
  CHECK(error_number([] { load("/dev/zero"); }) == EINVAL);
  CHECK(error_number([] { write_safetensors("/dev/null", {}); }) == EINVAL);
  CHECK(fs::is_character_file("/dev/null"));
#endif
  CHECK_THROWS(ValueError, load(""));
  CHECK_THROWS(ValueError, load(std::string("a\0b", 3)));
  CHECK(folder.files() == 0);
}

TEST(a_failed_write_leaves_the_old_file) {
  const Folder folder;
  put(folder / "m", "old");
  SafeTensors bad;
  bad.tensors["\xff"] = Tensor::zeros({1});
  CHECK_THROWS(ValueError, write_safetensors(folder / "m", bad));
  bad.tensors = {{"undefined", Tensor()}};
  CHECK_THROWS(ValueError, write_safetensors(folder / "m", bad));
  bad.tensors = {{"__metadata__", Tensor::zeros({1})}};
  CHECK_THROWS(ValueError, write_safetensors(folder / "m", bad));
  CHECK(get(folder / "m") == "old" && folder.files() == 1);
}

#if !defined(_WIN32)
TEST(links_stay_links_and_permissions_stay) {
  const Folder folder;
  put(folder / "real", "old");
  fs::permissions(folder / "real", fs::perms::owner_read | fs::perms::owner_write | fs::perms::group_read);
  fs::create_symlink("real", folder / "link");
  fs::create_symlink("absent", folder / "dangling");
  write_safetensors(folder / "link", {});
  write_safetensors(folder / "dangling", {});
  CHECK(fs::is_symlink(folder / "link") && fs::is_symlink(folder / "dangling"));
  CHECK(get(folder / "real") == get(folder / "absent") && get(folder / "real") != "old");
  CHECK(fs::status(folder / "real").permissions() ==
        (fs::perms::owner_read | fs::perms::owner_write | fs::perms::group_read));
  CHECK(folder.files() == 4);
}
#endif

// --- structure ---------------------------------------------------------------------------------------------------

Model every_layer() {
  Conv2dOptions options;
  options.padding = Size2(2, 1);
  options.groups = 3;
  const auto inner = std::make_shared<Sequential>(std::vector<LayerPtr>{
      std::make_shared<Flatten>(), std::make_shared<Linear>(6, 5, false), std::make_shared<Softmax>(1),
      std::make_shared<LogSoftmax>(), std::make_shared<Dropout>(0.25)});
  return Model(std::make_shared<Sequential>(
      std::vector<LayerPtr>{std::make_shared<Conv2d>(3, 6, Size2(3, 2), options), std::make_shared<ReLU>(),
                            std::make_shared<Sigmoid>(), std::make_shared<Tanh>(), std::make_shared<Softplus>(2.5),
                            std::make_shared<LeakyReLU>(0.1), std::make_shared<ELU>(1.0), std::make_shared<GELU>(),
                            std::make_shared<SiLU>(), std::make_shared<MaxPool2d>(3, 2, 1),
                            std::make_shared<AvgPool2d>(Size2(2, 1)), std::make_shared<GlobalAvgPool2d>(), inner}));
}

TEST(a_structure_comes_back) {
  const Model net = every_layer();
  const std::string json = structure_json(*net.layer());
  CHECK(structure_json(*layer_from_json(json)) == json);
  CHECK(structure_json(Softplus(2.5)) == R"({"config":{"beta":2.5},"kind":"Softplus"})");
  for (const char* kind : {"Conv2d", "Linear", "GlobalAvgPool2d", "LogSoftmax", "Dropout", "SiLU"}) {
    CHECK(json.find('"' + std::string(kind) + '"') != std::string::npos);
  }
}

TEST(a_layer_in_two_places_stays_one) {
  const auto shared = std::make_shared<Linear>(4, 4);
  const Model net(std::make_shared<Sequential>(std::vector<LayerPtr>{shared, std::make_shared<ReLU>(), shared}));
  const Folder folder;
  save(net, folder / "m");
  const auto layers = load(folder / "m").layer()->children();
  CHECK(layers.size() == 3 && layers[0] == layers[2] && layers[0] != layers[1]);
}

TEST(malformed_structures_are_refused) {
  std::string deep, closing;
  for (int i = 0; i < 100; ++i) deep += R"({"kind":"Sequential","config":{},"layers":[)", closing += "]}";
  const std::string texts[] = {
      "",
      "{",
      "[]",
      "1",
      "null",
      "{}",
      "\xff",
      R"({"kind":"ReLU"})",
      R"({"config":{}})",
      R"({"kind":1,"config":{}})",
      R"({"kind":"ReLU","config":[]})",
      R"({"kind":"ReLU","config":{},"x":1})",
      R"({"kind":"ReLU","kind":"ReLU","config":{}})",
      R"({"kind":"ReLU","config":{},"layers":[]})",
      R"({"kind":"Relu","config":{}})",
      R"({"kind":"os.system","config":{}})",
      R"({"kind":"ReLU","config":{"x":1}})",
      R"({"kind":"Linear","config":{}})",
      R"({"kind":"Linear","config":{"in_features":2,"out_features":2}})",
      R"({"kind":"Linear","config":{"in_features":2,"out_features":2,"bias":1}})",
      R"({"kind":"Linear","config":{"in_features":2.0,"out_features":2,"bias":true}})",
      R"({"kind":"Linear","config":{"in_features":"2","out_features":2,"bias":true}})",
      R"({"kind":"Linear","config":{"in_features":null,"out_features":2,"bias":true}})",
      R"({"kind":"Linear","config":{"in_features":0,"out_features":2,"bias":true}})",
      R"({"kind":"Linear","config":{"in_features":-2,"out_features":-2,"bias":true}})",
      R"({"kind":"Linear","config":{"in_features":2,"out_features":2,"bias":true,"x":1}})",
      R"({"kind":"Linear","config":{"in_features":2,"in_features":2,"out_features":2,"bias":true}})",
      R"({"kind":"Linear","config":{"in_features":9223372036854775808,"out_features":2,"bias":true}})",
      R"({"kind":"Linear","config":{"in_features":1000000000000,"out_features":1000000000000,"bias":true}})",
      R"({"kind":"MaxPool2d","config":{"kernel_size":[2],"stride":[2,2],"padding":[0,0]}})",
      R"({"kind":"MaxPool2d","config":{"kernel_size":[2,2.5],"stride":[2,2],"padding":[0,0]}})",
      R"({"kind":"MaxPool2d","config":{"kernel_size":[[2],2],"stride":[2,2],"padding":[0,0]}})",
      R"({"kind":"Dropout","config":{"p":2.0}})",
      R"({"kind":"Dropout","config":{"p":1e999}})",
      R"({"kind":"Sequential","config":{}})",
      R"({"kind":"Sequential","config":{},"layers":{}})",
      R"({"kind":"Sequential","config":{},"layers":[1]})",
      R"({"kind":"Sequential","config":{"a":1},"layers":[]})",
      R"({"same_as":0})",
      R"({"kind":"Sequential","config":{},"layers":[{"same_as":0}]})",
      R"({"kind":"Sequential","config":{},"layers":[{"kind":"ReLU","config":{}},{"same_as":1}]})",
      R"({"kind":"Sequential","config":{},"layers":[{"kind":"ReLU","config":{}},{"same_as":-1}]})",
      R"({"kind":"Sequential","config":{},"layers":[{"kind":"ReLU","config":{}},{"same_as":0,"kind":"ReLU"}]})",
      deep + closing,
      std::string(1'000'000, '['),
      std::string(17 << 20, ' '),
      std::string("{\"kind\":\"ReLU\",\"config\":{}}\0", 28),
  };
  for (const std::string& text : texts) {
    bool refused = false;
    try {
      layer_from_json(text);
    } catch (const ValueError&) {
      refused = true;
    }
    CHECK(refused);
    if (!refused) std::printf("  accepted: %.200s\n", text.c_str());
  }
}

class Mine : public ReLU {
 public:
  std::string kind() const override { return "ReLU"; }
};

TEST(layers_of_one_s_own_cannot_be_saved) {
  const Folder folder;
  const Model net(std::make_shared<Sequential>(std::vector<LayerPtr>{std::make_shared<Mine>()}));
  CHECK_THROWS(TypeError, save(net, folder / "m"));
  CHECK(folder.files() == 0);
}

// --- models ------------------------------------------------------------------------------------------------------

TEST(a_model_comes_back_with_its_weights) {
  const Folder folder;
  Model net(Conv2d(2, 3, 3), ReLU(), Flatten(), Linear(3 * 4 * 4, 5));
  save(net, folder / "m.safetensors");
  const Model back = load(folder / "m.safetensors");
  CHECK(structure_json(*back.layer()) == structure_json(*net.layer()));
  const NamedParameters before = net.parameters(), after = back.parameters();
  CHECK(before.size() == 4 && after.size() == 4);
  for (std::size_t i = 0; i < after.size(); ++i) {
    CHECK(before[i].first == after[i].first && equal(before[i].second->data, after[i].second->data));
  }
  Tensor x({2, 2, 6, 6});
  init::normal(x, 0, 1);
  CHECK(equal(net.forward(x), back.forward(x)));
  const SafeTensors tensors = read_safetensors(folder / "m.safetensors");
  CHECK(tensors.tensors.size() == 4 && tensors.tensors.count("3.bias") == 1);
  save(every_layer(), folder / "all");
  CHECK(load(folder / "all").parameters().size() == 3);
}

TEST(a_model_file_keeps_its_user_s_metadata) {
  const Folder folder;
  const Model net(Linear(2, 3), ReLU());
  const SGD sgd(0.1, 0.9);
  const Metadata metadata = {{"alphabet", "ab\n"}, {"", ""}};
  save(net, folder / "m", &sgd, metadata);
  Metadata back = {{"old", "entry"}};
  load(folder / "m", &back);
  CHECK(back == metadata);
  CHECK(read_safetensors(folder / "m").metadata.at("alphabet") == "ab\n");
  for (const char* name : {"format", "structure", "optimizer", "deepnet_version", "deepnet"}) {
    CHECK_THROWS(ValueError, save(net, folder / "n", nullptr, {{name, "text"}}));
  }
  CHECK_THROWS(ValueError, save(net, folder / "n", nullptr, {{"bytes", "\xff"}}));
  CHECK(folder.files() == 1);
}

TEST(a_model_file_must_be_one) {
  const Folder folder;
  const std::string path = folder / "m";
  Model net(Linear(2, 3), ReLU());
  save(net, path);
  const SafeTensors good = read_safetensors(path);
  const auto refuses = [&](const char* what, const std::function<void(SafeTensors&)>& change) {
    SafeTensors bad = good;
    change(bad);
    write_safetensors(path, bad);
    const std::string said = complaint(get(path), [](const std::string& file) { load(file); });
    CHECK(said.find(what) != std::string::npos);
    if (said.find(what) == std::string::npos) std::printf("  expected '%s' in: %s\n", what, said.c_str());
  };
  const auto structure = [](const char* json) { return [json](SafeTensors& f) { f.metadata["structure"] = json; }; };
  refuses("no deepnet model", [](SafeTensors& f) { f.metadata.clear(); });
  refuses("no deepnet model", [](SafeTensors& f) { f.metadata["format"] = "pt"; });
  refuses("version 1, got '2'", [](SafeTensors& f) { f.metadata["deepnet_version"] = "2"; });
  refuses("structure", [](SafeTensors& f) { f.metadata.erase("structure"); });
  refuses("structure", structure("{"));
  refuses("lacks: '0.bias'", [](SafeTensors& f) { f.tensors.erase("0.bias"); });
  refuses("does not have: 'extra'", [](SafeTensors& f) { f.tensors["extra"] = Tensor::zeros({1}); });
  refuses("does not have: 'optimizer.x'", [](SafeTensors& f) { f.tensors["optimizer.x"] = Tensor::zeros({1}); });
  refuses("(3, 2) and floats, got (2, 3)", [](SafeTensors& f) { f.tensors["0.weight"] = Tensor::zeros({2, 3}); });
  refuses("got (3,) and int64", [](SafeTensors& f) { f.tensors["0.bias"] = Tensor::labels({1, 2, 3}); });
  // These would allocate 4 GB and more before anyone looked at a tensor.
  refuses("asks for",
          structure(R"({"kind":"Linear","config":{"in_features":32768,"out_features":32768,"bias":false}})"));
  refuses("asks for", structure(R"({"kind":"Linear","config":{"in_features":9223372036854775807,
      "out_features":9223372036854775807,"bias":true}})"));
  refuses("asks for",
          structure(R"({"kind":"Conv2d","config":{"in_channels":1,"out_channels":1,"kernel_size":[32768,32768],
      "stride":[1,1],"padding":[0,0],"dilation":[1,1],"groups":1,"bias":false,"padding_mode":""}})"));
  refuses("lacks: '1.weight'", structure(R"({"kind":"Sequential","config":{},"layers":[
      {"kind":"Linear","config":{"in_features":2,"out_features":3,"bias":true}},
      {"kind":"Linear","config":{"in_features":1,"out_features":1,"bias":false}}]})"));
}

TEST(optimizer_state_comes_back) {
  const Folder folder;
  Model net(Linear(4, 3), ReLU());
  SGD sgd(0.1, 0.9);
  for (const auto& [name, parameter] : net.parameters()) parameter->grad().fill(0.5f);
  sgd.step(net.parameters());
  save(net, folder / "m", &sgd);
  Model back = load(folder / "m");
  SGD other(0.1, 0.9);
  load_optimizer_state(back, other, folder / "m");
  const NamedParameters before = net.parameters(), after = back.parameters();
  for (std::size_t i = 0; i < after.size(); ++i) {
    const auto a = sgd.state(*before[i].second), b = other.state(*after[i].second);
    CHECK(!a.empty() && a.size() == b.size());
    for (const auto& [name, tensor] : a) CHECK(equal(tensor, b.at(name)));
    after[i].second->grad().fill(0.5f);
  }
  sgd.step(net.parameters());
  other.step(back.parameters());
  for (std::size_t i = 0; i < after.size(); ++i) CHECK(equal(before[i].second->data, after[i].second->data));

  Model smaller((ReLU()));
  CHECK_THROWS(ValueError, load_optimizer_state(smaller, other, folder / "m"));
  save(net, folder / "without");
  CHECK_THROWS(ValueError, load_optimizer_state(back, other, folder / "without"));
  SafeTensors content = read_safetensors(folder / "m");
  content.metadata["optimizer"] = R"({"kind":"Adam","config":{}})";
  write_safetensors(folder / "m", content);
  CHECK_THROWS(ValueError, load_optimizer_state(back, other, folder / "m"));
}

// --- IDX ---------------------------------------------------------------------------------------------------------

std::string bytes(std::initializer_list<int> list) { return {list.begin(), list.end()}; }

TEST(idx_files_are_read) {
  const Folder folder;
  put(folder / "images", bytes({0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3, 0, 255, 51, 1, 2, 3}));
  const Tensor images = read_idx_images(folder / "images");
  CHECK(images.shape() == Shape({2, 1, 1, 3}));
  CHECK(values(images) == std::vector<float>({0, 1, 51 / 255.0f, 1 / 255.0f, 2 / 255.0f, 3 / 255.0f}));
  put(folder / "labels", bytes({0, 0, 8, 1, 0, 0, 0, 2, 7, 255}));
  CHECK(equal(read_idx_labels(folder / "labels"), Tensor::labels({7, 255})));
  put(folder / "none", bytes({0, 0, 8, 3, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 5}));
  CHECK(read_idx_images(folder / "none").shape() == Shape({0, 1, 5, 5}));
}

TEST(malformed_idx_files_are_refused) {
  const auto images = [](const std::string& file) {
    return complaint(file, [](const std::string& path) { read_idx_images(path); });
  };
  const std::string good = bytes({0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 2, 1, 2, 3, 4});
  CHECK(images(good).empty());
  for (std::size_t n = 0; n < good.size(); ++n) CHECK(!images(good.substr(0, n)).empty());
  CHECK(!images(good + "x").empty());
  for (const std::size_t at : {0u, 1u, 2u, 3u, 4u, 8u, 12u}) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x81);
    CHECK(!images(bad).empty());
  }
  CHECK(!images(bytes({0, 0, 8, 3}) + std::string(12, '\xff')).empty());  // 2^96 bytes
  CHECK(!images(bytes({0, 0, 8, 3, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 1})).empty());
  CHECK(!images(bytes({0, 0, 8, 1, 0, 0, 0, 1, 7})).empty());
  CHECK(images(bytes({0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0})).find("gunzip") != std::string::npos);
  CHECK(!complaint(good, [](const std::string& path) { read_idx_labels(path); }).empty());
}

}  // namespace
