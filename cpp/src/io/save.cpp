// A model file is a safetensors file. Its tensors are the parameters under their own names ("0.weight"), for any
// other tool to read, and the optimizer's buffers ("optimizer.0.weight.momentum_buffer"). Its metadata:
//   "format": "deepnet", "deepnet_version": "1", "structure": JSON, and with an optimizer "optimizer": JSON;
//   all others are the user's
#include <deepnet/io.hpp>

#include <cstring>
#include <set>
#include <vector>

#include <deepnet/error.hpp>

#include "safetensors.hpp"
#include "structure.hpp"

namespace deepnet {
namespace {

const std::string optimizer_prefix = "optimizer.";
const char* const format_version = "1";

bool is_optimizers(const std::string& name) { return name.compare(0, optimizer_prefix.size(), optimizer_prefix) == 0; }

// Names that save() writes, and those that a later version may.
bool is_reserved(const std::string& name) {
  return name == "format" || name == "structure" || name == "optimizer" || name.compare(0, 7, "deepnet") == 0;
}

std::string list_text(const std::vector<std::string>& names) {
  constexpr std::size_t shown = 5;
  std::string text;
  for (std::size_t i = 0; i < names.size() && i < shown; ++i) text += (i ? ", '" : "'") + names[i] + "'";
  if (names.size() > shown) text += " and " + std::to_string(names.size() - shown) + " more";
  return text;
}

const std::string& metadata(const SafeTensors& content, const std::string& path, const std::string& key,
                            const std::string& otherwise) {
  const auto found = content.metadata.find(key);
  if (found == content.metadata.end()) throw ValueError("[load] '" + path + "': " + otherwise);
  return found->second;
}

SafeTensors read_model_file(const std::string& path) {
  SafeTensors content = read_safetensors("load", path);
  const std::string foreign = "no deepnet model but tensors alone; read_safetensors reads those";
  const std::string& format = metadata(content, path, "format", foreign);
  if (format != "deepnet") throw ValueError("[load] '" + path + "': " + foreign);
  const std::string& version = metadata(content, path, "deepnet_version", "its metadata lack \"deepnet_version\"");
  if (version != format_version) {
    throw ValueError("[load] '" + path + "': expected format version " + format_version + ", got '" + version +
                     "': written by a newer deepnet?");
  }
  return content;
}

// The file's parameters must be the layer's, by name, type and shape.
void check_parameters(const NamedParameters& parameters, const SafeTensors& content, const std::string& path) {
  const bool has_optimizer = content.metadata.count("optimizer") != 0;
  std::set<std::string> unexpected;
  for (const auto& named : content.tensors) {
    if (!has_optimizer || !is_optimizers(named.first)) unexpected.insert(named.first);
  }
  std::vector<std::string> missing;
  for (const auto& [name, parameter] : parameters) {
    unexpected.erase(name);
    const auto found = content.tensors.find(name);
    if (found == content.tensors.end()) {
      missing.push_back(name);
      continue;
    }
    const Tensor& tensor = found->second;
    if (tensor.shape() != parameter->data.shape() || tensor.dtype() != DType::float32) {
      throw ValueError("[load] '" + path + "': expected '" + name + "' of shape " + parameter->data.shape().str() +
                       " and floats, got " + tensor.shape().str() + " and " + name_of(tensor.dtype()));
    }
  }
  if (!missing.empty())
    throw ValueError("[load] '" + path + "': its structure needs tensors it lacks: " + list_text(missing));
  if (!unexpected.empty()) {
    throw ValueError("[load] '" + path + "': tensors that its structure does not have: " +
                     list_text({unexpected.begin(), unexpected.end()}));
  }
}

}  // namespace

void save(const Model& model, const std::string& path, const Optimizer* optimizer, const Metadata& metadata) {
  SafeTensors content;
  for (const auto& entry : metadata) {
    if (is_reserved(entry.first)) {
      throw ValueError(
          "[save] expected metadata under other names than 'format', 'structure', 'optimizer' and "
          "'deepnet...', got '" +
          entry.first + "'");
    }
  }
  if (optimizer != nullptr && optimizer->belongs_elsewhere(model.parameters())) {
    throw ValueError("[save] expected the optimizer that trained this network, or a new one, got " + optimizer->kind() +
                     " that has updated other parameters only");
  }
  content.metadata = metadata;
  content.metadata["format"] = "deepnet";
  content.metadata["deepnet_version"] = format_version;
  content.metadata["structure"] = structure_json(*model.layer());
  if (optimizer != nullptr) content.metadata["optimizer"] = optimizer_json(*optimizer);
  for (const auto& [name, parameter] : model.parameters()) {
    content.tensors[name] = parameter->data;
    if (optimizer == nullptr) continue;
    for (const auto& [buffer, tensor] : optimizer->state(*parameter)) {
      content.tensors[optimizer_prefix + name + "." + buffer] = tensor;
    }
  }
  write_safetensors("save", path, content);
}

Model load(const std::string& path, Metadata* metadata_out) {
  const SafeTensors content = read_model_file(path);
  const std::string& structure = metadata(content, path, "structure", "its metadata lack \"structure\"");
  // A structure may ask for what the file holds, and a little more, so that a tensor it lacks is named below.
  Index elements = 1 << 20;
  for (const auto& [name, tensor] : content.tensors) {
    if (!is_optimizers(name)) elements += tensor.size();
  }
  const LayerPtr layer = layer_from_json(structure, elements);
  const NamedParameters parameters = layer->parameters();
  check_parameters(parameters, content, path);
  for (const auto& [name, parameter] : parameters) {
    std::memcpy(parameter->data.data(), content.tensors.at(name).data(), parameter->data.bytes());
  }
  if (metadata_out != nullptr) {
    metadata_out->clear();
    for (const auto& entry : content.metadata) {
      if (!is_reserved(entry.first)) metadata_out->insert(entry);
    }
  }
  return Model(layer);
}

void load_optimizer_state(const Model& model, Optimizer& optimizer, const std::string& path) {
  const SafeTensors content = read_model_file(path);
  const std::string kind =
      optimizer_kind(metadata(content, path, "optimizer", "it was saved without an optimizer's state"));
  if (kind != optimizer.kind()) {
    throw ValueError("[load] '" + path + "': expected the state of " + optimizer.kind() + ", got that of " + kind);
  }
  // "optimizer." + parameter + "." + buffer, whose name has no dot
  std::map<std::string, std::map<std::string, Tensor>> buffers;
  for (const auto& [name, tensor] : content.tensors) {
    if (!is_optimizers(name)) continue;
    const std::size_t dot = name.rfind('.');
    const std::size_t begin = optimizer_prefix.size();
    if (dot >= begin)
      buffers[name.substr(begin, dot - begin)][name.substr(dot + 1)] = tensor;
    else
      buffers[""][name.substr(begin)] = tensor;
  }
  std::vector<std::pair<ParameterPtr, std::map<std::string, Tensor>>> states;
  for (const auto& [name, parameter] : model.parameters()) {
    const auto found = buffers.find(name);
    if (found == buffers.end()) continue;
    states.emplace_back(parameter, std::move(found->second));
    buffers.erase(found);
  }
  if (!buffers.empty()) {
    throw ValueError("[load] '" + path + "': optimizer state for a parameter '" + buffers.begin()->first +
                     "' that the model lacks");
  }
  for (const auto& [parameter, state] : states) optimizer.load_state(parameter, state);
}

}  // namespace deepnet
