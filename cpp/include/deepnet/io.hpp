// Model files: safetensors, with the network's structure as JSON in the metadata. Nothing is ever executed.
#pragma once

#include <map>
#include <string>

#include <deepnet/model.hpp>
#include <deepnet/optimizer.hpp>

namespace deepnet {

/// Texts by name that a model file keeps for its user, such as the names of the classes. "format", "structure",
/// "optimizer" and names that begin with "deepnet" are the file's own.
using Metadata = std::map<std::string, std::string>;

/// Writes structure and weights (and the optimizer's state, if given) to a temporary file in the same
/// folder, syncs it and renames it over `path`: a crash leaves the old file or the new one, never a half.
/// FileError where that fails, TypeError for layers that are not this library's, whose code no file can hold.
void save(const Model& model, const std::string& path, const Optimizer* optimizer = nullptr,
          const Metadata& metadata = {});

/// A model from a file that save() or nn.Layer.save() wrote, and, where asked for, its user's metadata. Malformed files
/// throw ValueError before anything of the size they claim is allocated; unreadable ones FileError.
Model load(const std::string& path, Metadata* metadata = nullptr);

/// Puts the optimizer state of a file that was saved with one into `optimizer`, for the model loaded from it.
/// ValueError where the file has none, or that of another optimizer or model.
void load_optimizer_state(const Model& model, Optimizer& optimizer, const std::string& path);

/// A safetensors file's tensors (F32 and I64; F16, BF16, F64 and integers are converted to float32).
struct SafeTensors {
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> metadata;  ///< the header's "__metadata__"
};
/// Any safetensors file, whoever wrote it; errors as load()'s.
SafeTensors read_safetensors(const std::string& path);
/// Replaces the file as save() does. ValueError for undefined tensors and for names that are not UTF-8.
void write_safetensors(const std::string& path, const SafeTensors& content);

/// The IDX format of MNIST (LeCun), uncompressed: uint8 images (N, rows, cols) -> float32 (N, 1, rows, cols) in [0, 1].
/// ValueError for another format, FileError where the file cannot be read.
Tensor read_idx_images(const std::string& path);
/// The same for labels: uint8 (N) -> int64 (N).
Tensor read_idx_labels(const std::string& path);

/// A layer's structure as JSON text: {"kind": "Sequential", "config": {}, "layers": [...]}. TypeError as save()'s.
std::string structure_json(const Layer& layer);
/// The layer of such a text, with initial weights; ValueError where the text is malformed or names unknown layers.
LayerPtr layer_from_json(const std::string& json);

}  // namespace deepnet
