// Reading a layer's constructor arguments from a model file; throws ValueError where one is absent or of another type.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include <deepnet/layer.hpp>

namespace deepnet {

[[noreturn]] inline void config_error(const char* kind, const char* name, const char* expected, const char* got) {
  throw ValueError("[" + std::string(kind) + "] expected argument " + name + " of type " + expected + ", got " + got);
}

inline const char* name_of(const ConfigValue& value) {
  static constexpr const char* names[] = {"bool", "int", "float", "string", "list of ints"};
  static_assert(std::variant_size_v<ConfigValue> == sizeof names / sizeof *names);
  return names[value.index()];
}

/// The argument `name` of a layer of class `kind`.
template <class T>
const T& config_get(const Config& config, const char* kind, const char* name) {
  const char* expected = name_of(ConfigValue(T{}));
  const auto found = config.find(name);
  if (found == config.end()) config_error(kind, name, expected, "nothing");
  const T* value = std::get_if<T>(&found->second);
  if (value == nullptr) config_error(kind, name, expected, name_of(found->second));
  return *value;
}

inline bool config_bool(const Config& config, const char* kind, const char* name) {
  return config_get<bool>(config, kind, name);
}

inline Index config_int(const Config& config, const char* kind, const char* name) {
  return config_get<Index>(config, kind, name);
}

/// An integer will do: JSON writers print 1.0 as 1.
inline double config_double(const Config& config, const char* kind, const char* name) {
  const auto found = config.find(name);
  if (found != config.end()) {
    if (const Index* whole = std::get_if<Index>(&found->second)) return static_cast<double>(*whole);
  }
  return config_get<double>(config, kind, name);
}

inline const std::string& config_string(const Config& config, const char* kind, const char* name) {
  return config_get<std::string>(config, kind, name);
}

inline const std::vector<Index>& config_ints(const Config& config, const char* kind, const char* name) {
  return config_get<std::vector<Index>>(config, kind, name);
}

}  // namespace deepnet
