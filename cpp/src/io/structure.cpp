// Structure of a network as JSON:
//   a leaf          {"kind": "Conv2d", "config": {"in_channels": 3, ...}}     config: the layer's own config()
//   a composite     {"kind": "Sequential", "config": {}, "layers": [...]}     {"kind": "Recurrent", ..., "layers":
//   [cell]} a layer again   {"same_as": 2}      the third layer of the text, in a second place: the two share weights
// A Sequential, which is no more than its layers, has no number. Only composites nest, so a text makes at most as many
// layers as it names.
#include "structure.hpp"

#include <cmath>
#include <cstdio>
#include <limits>
#include <set>
#include <typeinfo>
#include <vector>

#include <nlohmann/json.hpp>

#include <deepnet/error.hpp>

namespace deepnet {
namespace {

using nlohmann::json;

constexpr int most_depth = 64;               // composites within composites
constexpr std::size_t most_text = 16 << 20;  // more than a hundred thousand layers
const char* const same_as_key = "same_as";

[[noreturn]] void fail(const std::string& problem) { throw ValueError("[load] structure: " + problem); }

// --- the layers there are --------------------------------------------------------------------------------------

struct Kind {
  const char* name;
  const std::type_info& type;
  LayerPtr (*from_config)(const Config&);                                         // null for composites
  LayerPtr (*from_parts)(const Config&, const std::vector<LayerPtr>&) = nullptr;  // null for leaves
};

const Kind kinds[] = {
#define DEEPNET_LEAF(Layer) {#Layer, typeid(Layer), &Layer::from_config},
#define DEEPNET_COMPOSITE(Layer) {#Layer, typeid(Layer), nullptr, &Layer::from_parts},
    DEEPNET_LAYERS(DEEPNET_LEAF) DEEPNET_COMPOSITES(DEEPNET_COMPOSITE)
#undef DEEPNET_LEAF
#undef DEEPNET_COMPOSITE
};

const Kind& find_kind(const std::string& name) {
  std::string known;
  for (const Kind& kind : kinds) {
    if (name == kind.name) return kind;
    known += (known.empty() ? "" : ", ") + std::string(kind.name);
  }
  fail("expected a layer of " + known + ", got '" + name + "'");
}

// Trained numbers that a layer with this configuration would have. In double: too many to count is many enough.
double claimed_elements(const std::string& kind, const Config& config) {
  const auto number = [&](const char* name, std::size_t i = 0) {
    const auto found = config.find(name);
    if (found == config.end()) return 0.0;  // the layer will say so
    if (const Index* one = std::get_if<Index>(&found->second)) return static_cast<double>(*one);
    if (const bool* flag = std::get_if<bool>(&found->second)) return *flag ? 1.0 : 0.0;
    if (const auto* list = std::get_if<std::vector<Index>>(&found->second)) {
      return i < list->size() ? static_cast<double>((*list)[i]) : 0.0;
    }
    return 0.0;
  };
  if (kind == "Linear") return number("out_features") * (number("in_features") + number("bias"));
  if (kind == "Conv2d") {
    const double taps = number("kernel_size", 0) * number("kernel_size", 1);
    const double channels = number("in_channels") / std::fmax(number("groups"), 1.0);
    return number("out_channels") * (channels * taps + number("bias"));
  }
  if (kind == "RNN" || kind == "LSTM" || kind == "GRU") {
    const double hidden = number("hidden_size"), directions = 1.0 + number("bidirectional");
    const double gates = kind == "RNN" ? 1.0 : kind == "LSTM" ? 4.0 : 3.0;
    const double inputs = number("input_size") + (number("num_layers") - 1.0) * directions * hidden;
    return directions * gates * hidden * (inputs + number("num_layers") * (hidden + 2.0 * number("bias")));
  }
  if (kind == "RNNCell" || kind == "LSTMCell" || kind == "GRUCell") {
    const double sums = (kind == "RNNCell" ? 1.0 : kind == "LSTMCell" ? 4.0 : 3.0) * number("hidden_size");
    return sums * (number("input_size") + number("hidden_size") + 2.0 * number("bias"));
  }
  return 0.0;
}

std::string count_text(double count) {
  char text[32];
  std::snprintf(text, sizeof text, "%.15g", count);
  return text;
}

// --- text to values --------------------------------------------------------------------------------------------

// Refuses, while parsing, keys that appear twice in an object and depths that no structure has.
class StrictObjects {
 public:
  bool operator()(int depth, json::parse_event_t event, const json& value) {
    if (depth > 2 * most_depth + 4) fail("nested too deeply");
    if (event == json::parse_event_t::object_start) keys_.emplace_back();
    if (event == json::parse_event_t::object_end) keys_.pop_back();
    if (event == json::parse_event_t::key && !keys_.back().insert(value.get<std::string>()).second) {
      fail("the key '" + value.get<std::string>() + "' appears twice");
    }
    return true;
  }

 private:
  std::vector<std::set<std::string>> keys_;
};

json parse(const std::string& text) {
  if (text.size() > most_text) fail("expected at most 16 MiB of JSON, got " + std::to_string(text.size()) + " bytes");
  // The parser takes a null character for the end.
  if (text.find('\0') != std::string::npos) fail("expected JSON, got a null character");
  StrictObjects strict;
  try {
    return json::parse(text,
                       [&](int depth, json::parse_event_t event, json& value) { return strict(depth, event, value); });
  } catch (const json::parse_error& error) {
    fail("not JSON at byte " + std::to_string(error.byte));
  } catch (const json::exception&) {
    fail("not JSON");
  }
}

ConfigValue config_value(const std::string& name, const json& value) {
  const auto integer = [&](const json& number) {
    const bool fits = number.is_number_integer() &&
                      !(number.is_number_unsigned() &&
                        number.get<std::uint64_t>() > static_cast<std::uint64_t>(std::numeric_limits<Index>::max()));
    if (!fits) fail("argument '" + name + "' expects integers, got " + number.dump());
    return number.get<Index>();
  };
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number_integer()) return integer(value);
  if (value.is_number_float()) return value.get<double>();
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_array()) fail("argument '" + name + "' is neither a boolean, number, text nor list of integers");
  std::vector<Index> list;
  for (const json& number : value) list.push_back(integer(number));
  return list;
}

// The members "kind", "config" and, where `more` is not null, `more`: these and no others.
void check_members(const json& node, const char* more) {
  std::set<std::string> expected = {"kind", "config"};
  if (more) expected.insert(more);
  for (const auto& [key, value] : node.items()) {
    if (expected.erase(key) == 0) fail("a layer has the unknown key '" + key + "'");
  }
  if (!expected.empty()) fail("a layer lacks the key '" + *expected.begin() + "'");
  if (!node["kind"].is_string() || !node["config"].is_object())
    fail("expected a text as \"kind\", an object as \"config\"");
}

Config read_config(const json& object) {
  Config config;
  for (const auto& [name, value] : object.items()) config.emplace(name, config_value(name, value));
  return config;
}

json write_config(const Config& config) {
  json object = json::object();
  for (const auto& [name, value] : config) {
    if (const double* number = std::get_if<double>(&value); number && !std::isfinite(*number)) {
      throw ValueError("[save] expected a finite '" + name + "', got " + std::to_string(*number));
    }
    std::visit([&, key = name](const auto& plain) { object[key] = plain; }, value);
  }
  return object;
}

// --- layers ----------------------------------------------------------------------------------------------------

class Writer {
 public:
  json write(const Layer& layer, int depth = 0) {
    if (depth > most_depth) {
      throw ValueError("[save] expected networks of at most " + std::to_string(most_depth) +
                       " levels within each other");
    }
    const Kind& kind = kind_of(layer);
    if (layer.graph() == nullptr) {
      const auto [found, fresh] = numbers_.emplace(&layer, numbers_.size());
      if (!fresh) return {{same_as_key, found->second}};
    }
    json node = {{"kind", kind.name}, {"config", write_config(layer.config())}};
    if (kind.from_parts) {
      json layers = json::array();
      for (const LayerPtr& child : layer.children()) layers.push_back(write(*child, depth + 1));
      node["layers"] = layers;
    }
    return node;
  }

 private:
  // By type and not by name alone: a class of the user's own may be called "ReLU" too.
  static const Kind& kind_of(const Layer& layer) {
    for (const Kind& kind : kinds) {
      if (typeid(layer) == kind.type) return kind;
    }
    throw TypeError("[save] expected layers of this library, got '" + layer.kind() +
                    "', a Python layer or one of your own, whose code no file can hold: save its weights with "
                    "state_dict() and build it again in code");
  }

  std::map<const Layer*, std::size_t> numbers_;
};

class Reader {
 public:
  explicit Reader(Index most_elements) : elements_left_(static_cast<double>(most_elements)) {}

  LayerPtr read(const json& node, int depth = 0) {
    if (depth > most_depth) fail("nested more than " + std::to_string(most_depth) + " levels deep");
    if (!node.is_object()) fail("expected an object as a layer, got " + std::string(node.type_name()));
    if (node.contains(same_as_key)) return earlier_layer(node);
    if (!node.contains("kind") || !node["kind"].is_string()) fail("expected a text as \"kind\" of a layer");
    const Kind& kind = find_kind(node["kind"].get<std::string>());
    check_members(node, kind.from_parts ? "layers" : nullptr);
    const Config config = read_config(node["config"]);
    return kind.from_parts ? composite(kind, config, node["layers"], depth) : leaf(kind, config);
  }

 private:
  LayerPtr earlier_layer(const json& node) const {
    const json& number = node[same_as_key];
    const bool known = node.size() == 1 && number.is_number_unsigned() &&
                       number.get<std::uint64_t>() < layers_.size() && layers_[number.get<std::size_t>()] != nullptr;
    if (!known) fail("\"same_as\" expects the number of an earlier layer, alone");
    return layers_[number.get<std::size_t>()];
  }

  LayerPtr composite(const Kind& kind, const Config& config, const json& parts, int depth) {
    if (!parts.is_array()) fail("expected a list as \"layers\"");
    const bool numbered = kind.type != typeid(Sequential);
    const std::size_t number = layers_.size();
    if (numbered) layers_.push_back(nullptr);  // no part may be the whole
    std::vector<LayerPtr> layers;
    for (const json& part : parts) layers.push_back(read(part, depth + 1));
    const LayerPtr layer = kind.from_parts(config, layers);
    check_arguments(*layer, config);
    if (numbered) layers_[number] = layer;
    return layer;
  }

  LayerPtr leaf(const Kind& kind, const Config& config) {
    const std::string name = kind.name;
    const double claimed = claimed_elements(name, config);
    if (claimed > elements_left_) {
      fail(name + " asks for " + count_text(claimed) + " weights, more than the file holds");
    }
    elements_left_ -= std::fmax(claimed, 0.0);
    const LayerPtr layer = kind.from_config(config);
    check_arguments(*layer, config);
    double elements = 0.0;
    for (const auto& named : layer->parameters()) elements += static_cast<double>(named.second->data.size());
    if (elements != claimed) throw Error("[load] claimed_elements() must be taught to count the weights of " + name);
    layers_.push_back(layer);
    return layer;
  }

  // from_config() has asked for what it needs; here, that it was given nothing else.
  static void check_arguments(const Layer& layer, const Config& config) {
    const Config known = layer.config();
    for (const auto& argument : config) {
      if (known.count(argument.first) == 0) fail(layer.kind() + " has no argument '" + argument.first + "'");
    }
    for (const auto& argument : known) {
      if (config.count(argument.first) == 0) fail(layer.kind() + " lacks the argument '" + argument.first + "'");
    }
  }

  double elements_left_;
  std::vector<LayerPtr> layers_;  // by number
};

}  // namespace

std::string structure_json(const Layer& layer) { return Writer().write(layer).dump(); }

LayerPtr layer_from_json(const std::string& text, Index most_elements) {
  return Reader(most_elements).read(parse(text));
}

LayerPtr layer_from_json(const std::string& text) {
  return layer_from_json(text, std::numeric_limits<Index>::max() / 8);
}

std::string optimizer_json(const Optimizer& optimizer) {
  return json{{"kind", optimizer.kind()}, {"config", write_config(optimizer.config())}}.dump();
}

std::string optimizer_kind(const std::string& text) {
  const json node = parse(text);
  if (!node.is_object()) fail("expected an object as the optimizer");
  check_members(node, nullptr);
  return node["kind"].get<std::string>();
}

}  // namespace deepnet
