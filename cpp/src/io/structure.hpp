// A network's structure, and an optimizer's settings, as JSON.
#pragma once

#include <string>

#include <deepnet/io.hpp>

namespace deepnet {

/// As layer_from_json(json), but throws ValueError before making layers of more than `most_elements` trained
/// numbers in all: what a file holds bounds what its structure may ask for.
LayerPtr layer_from_json(const std::string& json, Index most_elements);

/// {"kind": "SGD", "config": {...}}, and the kind of such a text.
std::string optimizer_json(const Optimizer& optimizer);
std::string optimizer_kind(const std::string& json);

}  // namespace deepnet
