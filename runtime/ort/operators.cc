// The ai.tbn operators for ONNX Runtime, and the one function the library exports.
#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <optional>
#include <thread>

#include "conv.h"
#include "gemm.h"
#include "ort_node.h"

namespace tbn::ort {
namespace {

enum InputIndex : std::size_t { input_x, input_tile, input_scale, input_bias, inputs_at_most };

struct Operator : CustomOperator {
  const Api* api;
  bool is_conv;
  ElementType type;
};

const Operator& as_operator(const CustomOperator* base) {
  return *static_cast<const Operator*>(base);
}

const char* operator_name(bool is_conv) { return is_conv ? "TiledBinaryConv" : "TiledBinaryGemm"; }

// How messages name the node.
std::string node_label(const Attributes& attributes, const Operator& op) {
  const std::string name = attributes.node_name();
  return operator_name(op.is_conv) + (name.empty() ? "" : " '" + name + "'");
}

struct AlignedDelete {
  void operator()(std::uint8_t* memory) const {
    ::operator delete(memory, std::align_val_t{Carver::alignment});
  }
};
using AlignedMemory = std::unique_ptr<std::uint8_t, AlignedDelete>;

AlignedMemory aligned_memory(std::int64_t bytes) {
  return AlignedMemory(static_cast<std::uint8_t*>(
      ::operator new(static_cast<std::size_t>(bytes), std::align_val_t{Carver::alignment})));
}

WeightAttributes weight_attributes(const Attributes& attributes) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  WeightAttributes weight{};
  weight.weight_shape = attributes.integers("weight_shape");
  if (weight.weight_shape.empty()) {
    throw InvalidLayer("attribute weight_shape is missing; it is required");
  }
  weight.tile_length = attributes.integer("tile_length");
  weight.offset = attributes.integer("offset", 0);
  weight.scale_length = attributes.integer("scale_length");
  weight.scale_offset = attributes.integer("scale_offset", 0);
  weight.activation.minimum = attributes.number("activation_min", -infinity);
  weight.activation.maximum = attributes.number("activation_max", infinity);
  return weight;
}

std::int64_t element_count(const Shape& shape) {
  std::int64_t count = 1;
  for (const std::int64_t length : shape) {
    if (__builtin_mul_overflow(count, length, &count)) {
      throw InvalidLayer("a tensor has more elements than can be counted");
    }
  }
  return count;
}

// Lends each of `count` pieces to one unit at a time; a thread that finds none waits for one.
class Workspaces {
 public:
  static constexpr std::int64_t most = 64;

  Workspaces(Scratch& scratch, std::int64_t count, std::int64_t bytes)
      : base_(static_cast<std::uint8_t*>(scratch.take(count, bytes))),
        bytes_(bytes),
        free_(count == most ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1) {}

  template <class Body>
  void lend(const Body& body) {
    const int index = acquire();
    body(base_ + index * bytes_);
    free_.fetch_or(std::uint64_t{1} << index, std::memory_order_release);
  }

 private:
  int acquire() {
    std::uint64_t free = free_.load(std::memory_order_relaxed);
    for (;;) {
      if (free == 0) {
        std::this_thread::yield();
        free = free_.load(std::memory_order_relaxed);
      } else if (free_.compare_exchange_weak(free, free & (free - 1), std::memory_order_acquire)) {
        return __builtin_ctzll(free);
      }
    }
  }

  std::uint8_t* base_;
  std::int64_t bytes_;
  std::atomic<std::uint64_t> free_;
};

// What both operators share: the weight's inputs, packed once where they are constant.
// Layer is Gemm or Conv.
template <class Layer>
class Kernel {
 public:
  virtual ~Kernel() = default;

  Status* compute(KernelContext* context) const {
    return guarded(api_, label_, [&] { run_layer(Run(*this, context)); });
  }

 protected:
  Kernel(const Api& api, const Attributes& attributes, const Operator& op)
      : api_(api),
        type_(op.type),
        kernels_(**usable_kernels().begin()),
        weight_(weight_attributes(attributes)),
        label_(node_label(attributes, op)) {}

  // One run's tensors.
  struct Run {
    Run(const Kernel& kernel, KernelContext* context_)
        : context(context_), scratch(kernel.api_, context_) {
      const Api& api = kernel.api_;
      std::size_t count = 0;
      check(api.input_count(context, &count));
      for (std::size_t i = 0; i < std::min<std::size_t>(count, inputs_at_most); ++i) {
        const Value* value = nullptr;
        check(api.input(context, i, &value));
        inputs[i] = Tensor(api, value);
      }
      kernel.check_inputs(inputs);
      layer = kernel.layer_ ? &*kernel.layer_ : &kernel.prepare_for_one_run(*this);
    }

    KernelContext* context;
    mutable Scratch scratch;
    Tensor inputs[inputs_at_most];
    std::optional<Layer> own_layer;
    const Layer* layer;
  };

  virtual std::int64_t outputs() const = 0;
  virtual Layer make_layer(const Tiling& tiling) const = 0;
  virtual void run_layer(const Run& run) const = 0;

  void check_inputs(const Tensor* inputs) const {
    tbn::check_inputs(weight_, outputs(),
                      {inputs[input_tile].shape(), inputs[input_scale].shape(),
                       inputs[input_bias].shape(), static_cast<bool>(inputs[input_bias])});
  }

  // Packs the signs now if both they and the scales are constant.
  void prepare_constants(const KernelInfo* info) {
    Tensor inputs[inputs_at_most];
    for (const auto index : {input_tile, input_scale, input_bias}) {
      int is_constant = 0;
      const Value* value = nullptr;
      check(api_.constant_input(info, index, &is_constant, &value));
      if (is_constant) inputs[index] = Tensor(api_, value);
    }
    bias_.assign(static_cast<std::size_t>(outputs()), 0.0f);
    if (!inputs[input_tile] || !inputs[input_scale]) return;
    check_inputs(inputs);
    if (inputs[input_bias]) {
      kernels_.to_float(type_, inputs[input_bias].template data<void>(), outputs(), bias_.data());
      bias_is_constant_ = true;
    }
    layer_ = make_layer(tiling_of(weight_, inputs[input_scale].shape()[0]));
    memory_ = aligned_memory(layer_->memory());
    layer_->prepare(parameters(inputs), memory_.get());
  }

  Parameters parameters(const Tensor* inputs) const {
    return {inputs[input_tile].template data<std::uint8_t>(),
            inputs[input_scale].template data<void>(), type_};
  }

  const Layer& prepare_for_one_run(Run& run) const {
    run.own_layer = make_layer(tiling_of(weight_, run.inputs[input_scale].shape()[0]));
    run.own_layer->prepare(parameters(run.inputs), run.scratch.take(1, run.own_layer->memory()));
    return *run.own_layer;
  }

  Call make_call(const Run& run, const Shape& output_shape) const {
    Value* y = nullptr;
    check(api_.output(run.context, 0, output_shape.data(), output_shape.size(), &y));
    Call call{};
    call.y = Tensor(api_, y).template data<void>();
    call.x = as_float(run, run.inputs[input_x]);
    call.tile = run.inputs[input_tile].template data<std::uint8_t>();
    const bool own_bias = run.inputs[input_bias] && !bias_is_constant_;
    call.bias = own_bias ? as_float(run, run.inputs[input_bias]) : bias_.data();
    call.finish = {weight_.activation.minimum, weight_.activation.maximum, type_};
    return call;
  }

  const float* as_float(const Run& run, const Tensor& tensor) const {
    if (type_ == ElementType::float32) return tensor.template data<const float>();
    constexpr std::int64_t piece = 1 << 14;
    const std::int64_t count = element_count(tensor.shape());
    auto* out = static_cast<float*>(run.scratch.take(count, sizeof(float)));
    const auto* in = tensor.template data<const std::uint16_t>();
    parallel(api_, run.context, divide_up(count, piece), [&](std::int64_t i) {
      kernels_.to_float(type_, in + i * piece, std::min(piece, count - i * piece), out + i * piece);
    });
    return out;
  }

  const Api& api_;
  ElementType type_;
  const KernelSet& kernels_;
  WeightAttributes weight_;
  std::string label_;

 private:
  std::vector<float> bias_;
  bool bias_is_constant_ = false;
  AlignedMemory memory_;
  std::optional<Layer> layer_;
};

class GemmKernel final : public Kernel<Gemm> {
 public:
  GemmKernel(const Api& api, const KernelInfo* info, const Operator& op)
      : Kernel(api, Attributes(api, info), op) {
    const std::int64_t transposed = Attributes(api, info).integer("transB", 1);
    check_gemm(weight_, transposed);
    layout_ = transposed ? Layout::NK : Layout::KN;
    prepare_constants(info);
  }

 private:
  std::int64_t outputs() const override {
    return weight_.weight_shape[layout_ == Layout::NK ? 0 : 1];
  }
  std::int64_t inputs() const { return weight_.weight_shape[layout_ == Layout::NK ? 1 : 0]; }

  Gemm make_layer(const Tiling& tiling) const override {
    return {plan_matrix(outputs(), inputs(), layout_, tiling), kernels_};
  }

  void run_layer(const Run& run) const override {
    Shape shape = run.inputs[input_x].shape();
    if (shape.empty() || shape.back() != inputs()) {
      throw InvalidLayer("the last dimension of X must be K = " + std::to_string(inputs()) +
                         " of weight_shape");
    }
    shape.back() = outputs();
    const Call call = make_call(run, shape);
    const std::int64_t rows = element_count(run.inputs[input_x].shape()) / inputs();
    if (rows == 0) return;
    parallel(api_, run.context, run.layer->units(rows),
             [&](std::int64_t unit) { run.layer->run(call, rows, unit); });
  }

  Layout layout_ = Layout::NK;
};

class ConvKernel final : public Kernel<Conv> {
 public:
  ConvKernel(const Api& api, const KernelInfo* info, const Operator& op)
      : Kernel(api, Attributes(api, info), op) {
    const Attributes attributes(api, info);
    conv_.strides = attributes.integers("strides");
    conv_.dilations = attributes.integers("dilations");
    conv_.pads = attributes.integers("pads");
    conv_.auto_pad = attributes.text("auto_pad", "NOTSET");
    conv_.group = attributes.integer("group", 1);
    check_conv(weight_, conv_);
    prepare_constants(info);
  }

 private:
  std::int64_t outputs() const override { return weight_.weight_shape[0]; }

  Conv make_layer(const Tiling& tiling) const override {
    return {weight_.weight_shape, conv_.group, tiling, kernels_};
  }

  void run_layer(const Run& run) const override {
    const Shape& x = run.inputs[input_x].shape();
    const ConvGeometry geometry = conv_geometry(weight_, conv_, x);
    const Shape shape = conv_output_shape(geometry, x.size());
    const Call call = make_call(run, shape);
    if (element_count(shape) == 0) return;
    const Conv::Schedule schedule = run.layer->schedule(geometry, threads_);
    Workspaces workspaces(run.scratch, std::min({schedule.units, threads_, Workspaces::most}),
                          schedule.workspace);
    parallel(api_, run.context, schedule.units, [&](std::int64_t unit) {
      workspaces.lend(
          [&](void* workspace) { run.layer->run(call, geometry, schedule, unit, workspace); });
    });
  }

  ConvAttributes conv_;
  // Asked once: it takes as long as a small layer.
  const std::int64_t threads_ = std::max<std::int64_t>(1, std::thread::hardware_concurrency());
};

template <class K>
Status* create_kernel(const CustomOperator* op, const Api* api, const KernelInfo* info,
                      void** kernel) {
  std::string label;
  const auto body = [&] {
    label = node_label(Attributes(*api, info), as_operator(op));
    *kernel = new K(*api, info, as_operator(op));
  };
  return guarded(*api, label, body);
}

template <class K>
Status* compute(void* kernel, KernelContext* context) {
  return static_cast<const K*>(kernel)->compute(context);
}

// Shape inference. Only a shape known in full is stated: a half-known one makes the runtime warn.
class ShapeInference {
 public:
  ShapeInference(const Api& api, const ShapeContext* context) : api_(api), context_(context) {}

  void run(const Operator& op) const {
    TensorInfo* x = nullptr;
    check(api_.shape_input(context_, input_x, &x));
    Shape shape = shape_of(api_, x);
    if (shape.empty()) return;
    std::vector<const char*> names(shape.size(), "");
    check(api_.symbolic_dimensions(x, names.data(), names.size()));
    if (op.is_conv ? !infer_conv(shape, names) : !infer_gemm(shape, names)) return;
    for (std::size_t i = 0; i < shape.size(); ++i) {
      if (shape[i] < 0 && !*names[i]) return;
    }
    // The runtime may ask any of the operator's types, so the element type is the input's.
    TensorType element_type = tensor_float32;
    check(api_.element_type(x, &element_type));
    TensorInfo* y = nullptr;
    check(api_.create_tensor_info(&y));
    Status* status = api_.set_element_type(y, element_type);
    if (!status) status = api_.set_dimensions(y, shape.data(), shape.size());
    if (!status) status = api_.set_symbolic_dimensions(y, names.data(), names.size());
    if (!status) status = api_.shape_output(context_, 0, y);
    api_.release_tensor_info(y);
    check(status);
  }

 private:
  bool infer_gemm(Shape& shape, std::vector<const char*>& names) const {
    const Shape weight = integers("weight_shape");
    if (weight.size() != 2) return false;
    shape.back() = weight[integer("transB", 1) ? 0 : 1];
    names.back() = "";
    return true;
  }

  bool infer_conv(Shape& shape, std::vector<const char*>& names) const {
    WeightAttributes weight{integers("weight_shape"), 1, 0, 1, 0, {0, 0}};
    ConvAttributes conv{integers("strides"), integers("dilations"), integers("pads"),
                        text("auto_pad", "NOTSET"), integer("group", 1)};
    check_conv(weight, conv);
    if (shape.size() != weight.weight_shape.size()) return false;
    const auto is_unknown = [](std::int64_t length) { return length < 0; };
    if (std::any_of(shape.begin() + 2, shape.end(), is_unknown)) return false;
    const std::int64_t batch = shape[0];
    shape[0] = 1;
    shape[1] = weight.weight_shape[1] * conv.group;
    shape = conv_output_shape(conv_geometry(weight, conv, shape), shape.size());
    shape[0] = batch;
    std::fill(names.begin() + 1, names.end(), "");
    return true;
  }

  const OperatorAttribute* attribute(const char* name) const {
    const OperatorAttribute* found = nullptr;
    Status* status = api_.shape_attribute(context_, name, &found);
    if (!status) return found;
    api_.release_status(status);
    return nullptr;
  }

  std::int64_t integer(const char* name, std::int64_t otherwise) const {
    const OperatorAttribute* found = attribute(name);
    if (!found) return otherwise;
    std::int64_t value = 0;
    std::size_t bytes = 0;
    check(api_.read_attribute(found, attribute_int, &value, sizeof value, &bytes));
    return value;
  }

  // The first call says how many bytes the second one needs.
  std::size_t bytes_of(const OperatorAttribute* found, AttributeType type) const {
    std::size_t bytes = 0;
    char nothing = 0;
    if (Status* status = api_.read_attribute(found, type, &nothing, 0, &bytes)) {
      api_.release_status(status);
    }
    return bytes;
  }

  Shape integers(const char* name) const {
    const OperatorAttribute* found = attribute(name);
    if (!found) return {};
    std::size_t bytes = bytes_of(found, attribute_ints);
    Shape values(bytes / sizeof(std::int64_t));
    if (!values.empty()) {
      check(api_.read_attribute(found, attribute_ints, values.data(), bytes, &bytes));
    }
    return values;
  }

  std::string text(const char* name, const char* otherwise) const {
    const OperatorAttribute* found = attribute(name);
    if (!found) return otherwise;
    std::size_t bytes = bytes_of(found, attribute_string);
    std::string value(bytes, '\0');
    if (bytes) check(api_.read_attribute(found, attribute_string, value.data(), bytes, &bytes));
    return value.c_str();
  }

  const Api& api_;
  const ShapeContext* context_;
};

// The runtime drops a status from here. A layer that cannot be understood gets no shape, and
// creating its kernel says why.
Status* infer_shape(const CustomOperator* op, ShapeContext* context) {
  const Api& api = *as_operator(op).api;
  Status* status =
      guarded(api, "shape inference", [&] { ShapeInference(api, context).run(as_operator(op)); });
  if (status) api.release_status(status);
  return nullptr;
}

TensorType tensor_type(ElementType type) {
  switch (type) {
    case ElementType::float16:
      return tensor_float16;
    case ElementType::bfloat16:
      return tensor_bfloat16;
    case ElementType::float32:
      break;
  }
  return tensor_float32;
}

template <class K>
Operator make_operator(const Api& api, bool is_conv, ElementType type) {
  Operator op{};
  op.api = &api;
  op.is_conv = is_conv;
  op.type = type;
  op.version = api_version;
  op.name = [](const CustomOperator* self) { return operator_name(as_operator(self).is_conv); };
  op.provider = [](const CustomOperator*) -> const char* { return nullptr; };
  op.input_count = [](const CustomOperator*) { return std::size_t{inputs_at_most}; };
  op.input_type = [](const CustomOperator* self, std::size_t index) {
    return index == input_tile ? tensor_uint8 : tensor_type(as_operator(self).type);
  };
  op.input_presence = [](const CustomOperator*, std::size_t index) {
    return index == input_bias ? optional_value : required_value;
  };
  op.input_memory = [](const CustomOperator*, std::size_t) { return 0; };
  op.output_count = [](const CustomOperator*) { return std::size_t{1}; };
  op.output_type = [](const CustomOperator* self, std::size_t) {
    return tensor_type(as_operator(self).type);
  };
  op.output_presence = [](const CustomOperator*, std::size_t) { return required_value; };
  const auto not_variadic = [](const CustomOperator*) { return 1; };
  op.variadic_input_least = not_variadic;
  op.variadic_input_homogeneous = not_variadic;
  op.variadic_output_least = not_variadic;
  op.variadic_output_homogeneous = not_variadic;
  op.create_kernel = create_kernel<K>;
  op.compute = compute<K>;
  op.destroy = [](void* kernel) { delete static_cast<K*>(kernel); };
  op.infer_shape = infer_shape;
  op.first_version = [](const CustomOperator*) { return 1; };
  op.last_version = [](const CustomOperator*) { return 1; };
  return op;
}

// Sessions keep pointers to the domain and its operators, so both live as long as the process.
OperatorDomain* make_domain(const Api& api) {
  using enum_list = std::initializer_list<ElementType>;
  static std::vector<Operator> operators;
  for (const auto type :
       enum_list{ElementType::float32, ElementType::float16, ElementType::bfloat16}) {
    operators.push_back(make_operator<GemmKernel>(api, false, type));
    operators.push_back(make_operator<ConvKernel>(api, true, type));
  }
  OperatorDomain* domain = nullptr;
  check(api.create_domain("ai.tbn", &domain));
  for (const Operator& op : operators) check(api.add_operator(domain, &op));
  return domain;
}

Status* register_operators(SessionOptions* options, const Api& api) {
  return guarded(api, "ai.tbn", [&] {
    static OperatorDomain* const domain = make_domain(api);
    check(api.add_domain(options, domain));
  });
}

}  // namespace
}  // namespace tbn::ort

// Called by ONNX Runtime when the library is registered with a session.
extern "C" __attribute__((visibility("default"))) tbn::ort::Status* RegisterCustomOps(
    tbn::ort::SessionOptions* options, const tbn::ort::ApiBase* base) {
  const tbn::ort::Api* api = base->get(tbn::ort::api_version);
  if (!api) {
    return base->get(1)->create_status(tbn::ort::status_fail,
                                       "ai.tbn needs ONNX Runtime 1.17 or newer; upgrade it");
  }
  return tbn::ort::register_operators(options, *api);
}
