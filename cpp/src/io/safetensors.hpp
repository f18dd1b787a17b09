// safetensors files under the name of the function that reads or writes them, which opens every error message.
#pragma once

#include <string>

#include <deepnet/io.hpp>

namespace deepnet {

SafeTensors read_safetensors(const char* what, const std::string& path);
void write_safetensors(const char* what, const std::string& path, const SafeTensors& content);

}  // namespace deepnet
