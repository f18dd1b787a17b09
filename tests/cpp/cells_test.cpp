// Cells unrolled over sequences, through the C++ interface: a cell of one's own, masks, states, training, files.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include <deepnet/deepnet.hpp>

#include "check.hpp"

using namespace deepnet;

namespace {

// s(t) = decay s(t-1) + x(t), with a decay to be learned.
class Leaky : public RecurrentCell {
 public:
  explicit Leaky(Index size, float decay) : decay(std::make_shared<Parameter>(Tensor::full({1}, decay))), size_(size) {}

  std::string kind() const override { return "Leaky"; }
  Index input_size() const override { return size_; }
  std::vector<Index> state_sizes() const override { return {size_}; }
  NamedParameters parameters() const override { return {{"decay", decay}}; }

  void forward(const ForwardCall& call) const override {
    for (Index i = 0; i < call.output->size(); ++i) {
      call.output->data()[i] = decay->data.data()[0] * call.inputs[1].data()[i] + call.inputs[0].data()[i];
    }
  }
  void backward(const BackwardCall& call) override {
    float d_decay = call.accumulate ? decay->grad().data()[0] : 0.0f;
    for (Index i = 0; i < call.d_output->size(); ++i) {
      const float d = call.d_output->data()[i];
      d_decay += d * call.inputs[1].data()[i];
      call.d_inputs[1].data()[i] = decay->data.data()[0] * d;
      if (call.d_inputs[0].defined()) call.d_inputs[0].data()[i] = d;
    }
    decay->grad().data()[0] = d_decay;
  }

  const ParameterPtr decay;

 private:
  const Index size_;
};

// The same, whose forward reads the decay from what was packed, and whose backward is to be reminded of its step.
class PackedLeaky : public Leaky {
 public:
  using Leaky::Leaky;

  Contract contract() const override {
    Contract c;
    c.remembers = true;
    return c;
  }
  Memory memory(const std::vector<Shape>&, bool) const override {
    Memory m;
    m.packed = sizeof(float);
    return m;
  }
  void pack(const std::vector<Shape>& inputs, void* packed) const override {
    if (inputs.size() == 2) *static_cast<float*>(packed) = decay->data.data()[0];
  }
  void forward(const ForwardCall& call) const override {
    for (Index i = 0; i < call.output->size(); ++i) {
      call.output->data()[i] =
          *static_cast<const float*>(call.packed) * call.inputs[1].data()[i] + call.inputs[0].data()[i];
    }
  }
};

bool equal(const Tensor& a, const std::vector<float>& b) {
  return a.size() == static_cast<Index>(b.size()) && std::equal(b.begin(), b.end(), a.data());
}

Tensor numbers(const Shape& shape) {
  Tensor t(shape);
  init::uniform(t, -1.0, 1.0);
  return t;
}

}  // namespace

TEST(own_cell_forward_and_backward) {
  const auto cell = std::make_shared<Leaky>(1, 0.5f);
  Model layer{Recurrent(cell)};
  const Tensor x = Tensor::from({1, 2, 4}, {1, 3, 1});
  CHECK(equal(layer.run({x}), {1, 2.5f, 5.25f}));
  const std::vector<Tensor> d = layer.backward(Tensor::full({1, 3, 1}, 1.0f));
  CHECK(d.size() == 1 && equal(d[0], {1.75f, 1.5f, 1}));  // 1 + 0.5 (1 + 0.5), ...
  CHECK_NEAR(cell->decay->grad().data()[0], 1 * 1.5 + 2.5, 1e-6);
  CHECK(layer.parameters()[0].first == "0.cell.decay");
}

TEST(own_cell_that_packs) {
  const auto cell = std::make_shared<PackedLeaky>(1, 0.25f);
  Model layer{Recurrent(cell)};
  const Tensor x = Tensor::from({1, 2, 4}, {1, 3, 1});
  layer.run({x});
  cell->decay->data.fill(0.5f);
  CHECK(equal(layer.run({x}), {1, 2.5f, 5.25f}));
  CHECK(equal(layer.backward(Tensor::full({1, 3, 1}, 1.0f))[0], {1.75f, 1.5f, 1}));
  CHECK(equal(layer.step(Tensor::from({1}, {1, 1})), {1}) && equal(layer.step(Tensor::from({2}, {1, 1})), {2.5f}));
}

TEST(own_cell_with_a_state_and_a_mask) {
  Model layer(std::make_shared<Recurrent>(std::make_shared<Leaky>(1, 0.5f)));
  const Tensor x = Tensor::from({1, 2, 4}, {1, 3, 1}), state = Tensor::from({8}, {1, 1, 1});
  const Tensor mask = mask_of_lengths("test", Tensor::labels({2}), 1, 3);
  CHECK(equal(layer.run({x, state}, mask), {5, 4.5f, 0}));
  const std::vector<Tensor> d = layer.backward(Tensor::full({1, 3, 1}, 1.0f));
  CHECK(d.size() == 2 && equal(d[0], {1.5f, 1, 0}) && equal(d[1], {0.75f}));
  const auto& recurrent = static_cast<const RecurrentLayer&>(*layer.layer());
  const Traces traces = layer.traces();
  CHECK(traces.size() == 1);
  traces[0]->read([&](void* cache) {
    CHECK(equal(recurrent.final_state(cache, x.shape())[0], {4.5f}));
    CHECK(equal(recurrent.state_gradient_norms(cache, x.shape()), {1.5f, 1, 0}));
  });
  CHECK_THROWS(ShapeError, layer.run({x}, Tensor::zeros({1, 2})));
  CHECK_THROWS(ValueError, layer.run({x}, Tensor::full({1, 3}, 0.5f)));
  CHECK_THROWS(ShapeError, layer.run({x, Tensor::zeros({1, 2, 1})}));
  CHECK_THROWS(ShapeError, layer.run({x, state, state}));
}

TEST(traces_outlive_the_network) {
  Traces traces;
  const auto cell = std::make_shared<Leaky>(1, 0.5f);
  const auto layer = std::make_shared<Recurrent>(cell);
  const Shape shape = {1, 3, 1};
  {
    Model model(layer);
    model.run({Tensor::from({1, 2, 4}, shape)});
    traces = model.traces();
  }
  traces[0]->read([&](void* cache) { CHECK(equal(layer->final_state(cache, shape)[0], {5.25f})); });
}

TEST(training_on_padded_sequences) {
  manual_seed(5);
  Model net{Recurrent(std::make_shared<GRUCell>(3, 8)), Linear(8, 4)};
  const Tensor x = numbers({6, 5, 3});
  Tensor labels = Tensor(Shape{6, 5}, DType::int64);
  const Tensor mask = mask_of_lengths("test", Tensor::labels({5, 3, 1, 4, 2, 5}), 6, 5);
  for (Index i = 0; i < 30; ++i) labels.labels()[i] = mask.data()[i] != 0.0f ? i % 4 : -100;
  Trainer trainer(net, CrossEntropyLoss({-1}), SGD(1.0, 0.9));
  const float first = trainer.step(x, labels, mask);
  CHECK(trainer.last_counted() == 20);
  float last = first;
  for (int i = 0; i < 60; ++i) last = trainer.step(x, labels, mask);
  CHECK(last < 0.5f * first);
  CHECK(!trainer.traces().empty());

  const Tensor y = net.forward(x, mask), alone = net.forward(x.rows(1, 2));
  CHECK_NEAR(y.data()[5 * 4 + 2 * 4 + 1], alone.data()[2 * 4 + 1], 1e-5);  // step 2 of sequence 1
  for (Index t = 0; t < 5; ++t) {
    Tensor x_t({6, 3});
    for (Index n = 0; n < 6; ++n) std::copy_n(x.data() + (n * 5 + t) * 3, 3, x_t.data() + n * 3);
    const Tensor step = net.step(x_t);
    CHECK_NEAR(step.data()[5 * 4 + 3], y.data()[(5 * 5 + t) * 4 + 3], 1e-5);
  }
}

TEST(files_hold_cells) {
  const std::string path = (std::filesystem::temp_directory_path() / "deepnet_cells_test.safetensors").string();
  UnrollOptions options;
  options.truncate = 3;
  Model net{Recurrent(std::make_shared<LSTMCell>(3, 4), options), Linear(4, 2)};
  save(net, path);
  const Tensor x = numbers({2, 5, 3}), want = net.forward(x), got = load(path).forward(x);
  CHECK(std::memcmp(got.raw(), want.raw(), want.bytes()) == 0);
  std::remove(path.c_str());
  CHECK_THROWS(TypeError, save(Model(std::make_shared<Recurrent>(std::make_shared<Leaky>(1, 0.5f))), path));

  const std::string cell =
      R"({"kind":"RNNCell","config":{"bias":true,"hidden_size":2,"input_size":1,"nonlinearity":"relu"}})";
  const auto unrolled = [](const std::string& layers) {
    return R"({"kind":"Recurrent","config":{"return_sequences":true,"reverse":false,"stateful":false,"truncate":0},)"
           R"("layers":[)" +
           layers + "]}";
  };
  CHECK(layer_from_json(unrolled(cell))->kind() == "Recurrent");
  for (const std::string& bad : {std::string(), cell + "," + cell, std::string(R"({"same_as":0})"),
                                 std::string(R"({"kind":"ReLU","config":{}})"), unrolled(cell)}) {
    CHECK_THROWS(ValueError, layer_from_json(unrolled(bad)));
  }
}

// With the lock held while arrays go, this would wait for itself.
TEST(a_states_owner_may_ask_for_the_state_as_it_goes) {
  CarriedState state;
  int asked = 0;
  float* memory = new float[3]();
  const auto go = [&](void* p) {
    asked += state.get().empty();
    delete[] static_cast<float*>(p);
  };
  state.set({Tensor::borrow(memory, {3}, DType::float32, std::shared_ptr<void>(memory, go))});
  state.set({});
  CHECK(asked == 1);
}
