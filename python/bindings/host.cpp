// What the bindings attach to a layer: the Model that runs it alone, and where its last run left what it can show.
#include <mutex>

#include "bindings.hpp"

namespace deepnet::python {
namespace {

struct Host {
  // The Model must not own the layer that owns it.
  explicit Host(Layer& layer) : model(LayerPtr(std::shared_ptr<void>(), &layer)) {}

  Model model;
  std::shared_ptr<const Trace> trace;
};

std::mutex hosts_mutex;

Host& locked_host_of(Layer& layer) {
  if (!layer.host) layer.host = std::make_shared<Host>(layer);
  return *static_cast<Host*>(layer.host.get());
}

}  // namespace

Model& model_of(Layer& layer) {
  std::lock_guard<std::mutex> lock(hosts_mutex);
  return locked_host_of(layer).model;
}

void note(const Traces& traces) {
  if (traces.empty()) return;
  std::lock_guard<std::mutex> lock(hosts_mutex);
  for (const auto& trace : traces) {
    Host& host = locked_host_of(*trace->layer());
    if (host.trace != trace) host.trace = trace;
  }
}

std::shared_ptr<const Trace> trace_of(Layer& layer) {
  std::lock_guard<std::mutex> lock(hosts_mutex);
  return locked_host_of(layer).trace;
}

}  // namespace deepnet::python
