// The derivative of the op, for every device. library.py has the same in Python, where there is no library.
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include <string>
#include <tuple>

#include "op.h"

namespace roi_plugins {
namespace {

// torch 2.15 holds the nodes of a graph by intrusive pointers, earlier ones by shared pointers.
using NodePointer = decltype(torch::autograd::Edge::function);

template <typename Type, typename... Args>
NodePointer make_node(Args&&... args) {
  if constexpr (std::is_same_v<NodePointer, std::shared_ptr<torch::autograd::Node>>) {
    return std::make_shared<Type>(std::forward<Args>(args)...);
  } else {
    return NodePointer(c10::make_intrusive<Type>(std::forward<Args>(args)...));
  }
}

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;

using Forward = std::tuple<Tensor, Tensor>(
    at::TensorList, const Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
    ROI_OPTIONS);
using Backward = std::vector<Tensor>(
    const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
    const OptionalTensor&, c10::SymIntArrayRef, bool, ROI_OPTIONS);
using BackwardRois = std::tuple<Tensor, Tensor>(
    const Tensor&, const Tensor&, at::TensorList, const Tensor&, const OptionalTensor&,
    const OptionalTensor&, const OptionalTensor&, ROI_OPTIONS);

// The options of the schema in its order, as the backward pass keeps them.
using KeptOptions = std::tuple<
    std::vector<double>, std::vector<int64_t>, std::string, std::optional<int64_t>, std::string, bool,
    int64_t, std::optional<int64_t>, bool>;

// A list, because compiled autograd cannot hash a tuple with lists in it.
c10::IValue pack(const KeptOptions& options) {
  c10::impl::GenericList values(c10::AnyType::get());
  values.reserve(std::tuple_size_v<KeptOptions>);
  std::apply([&](const auto&... each) { (values.push_back(each), ...); }, options);
  return values;
}

KeptOptions unpack(const c10::IValue& packed) {
  const c10::ArrayRef<c10::IValue> values = packed.toListRef();
  return {
      values[0].toDoubleVector(), values[1].toIntVector(), values[2].toStringRef(),
      values[3].toOptional<int64_t>(), values[4].toStringRef(), values[5].toBool(),
      values[6].toInt(), values[7].toOptional<int64_t>(), values[8].toBool()};
}

template <typename Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

template <typename... Arguments>
std::tuple<Tensor, Tensor> forward_below_autograd(const Arguments&... arguments) {
  static const auto op = find_op<Forward>("roi_plugins::roi_extract");
  const at::AutoDispatchBelowADInplaceOrView below;
  return op.call(arguments...);
}

OptionalTensor if_defined(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

class RoIExtract : public torch::autograd::Function<RoIExtract> {
 public:
  static constexpr bool is_traceable = true;  // by compiled autograd: the context holds all that backward reads

  // Returns the output and sets `argmax`, which as whole numbers has no gradient and needs no place in the graph.
  static Tensor forward(
      AutogradContext* ctx, at::TensorList features, const Tensor& rois, const OptionalTensor& levels,
      const OptionalTensor& offsets, const OptionalTensor& seed, const KeptOptions& options, Tensor* argmax) {
    Tensor output;
    std::tie(output, *argmax) = std::apply(
        [&](const auto&... each) {
          return forward_below_autograd(features, rois, levels, offsets, seed, each...);
        },
        options);
    // The gradient to the features needs the shapes of the maps only; the one to the positions needs the maps.
    std::vector<c10::SymInt> shapes{features[0].sym_size(0), features[0].sym_size(1)};
    for (const Tensor& map : features) {
      shapes.push_back(map.sym_size(2));
      shapes.push_back(map.sym_size(3));
    }
    variable_list saved{
        *argmax, rois, levels.value_or(Tensor()), offsets.value_or(Tensor()), seed.value_or(Tensor())};
    if (rois.requires_grad() || (offsets && offsets->requires_grad())) {
      saved.insert(saved.end(), features.begin(), features.end());
    }
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["feature_shapes"] = shapes;
    ctx->saved_data["channels_last"] = is_channels_last(features[0]);
    ctx->saved_data["options"] = pack(options);
    ctx->set_materialize_grads(false);  // an output that gets no gradient gives none
    return output;
  }

  // One gradient for each map, then for the RoIs, levels, offsets and seed, and none for the rest.
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &grad = grads[0], &argmax = saved[0], &rois = saved[1];
    const OptionalTensor levels = if_defined(saved[2]), offsets = if_defined(saved[3]);
    const OptionalTensor seed = if_defined(saved[4]);
    const at::TensorList features = at::TensorList(saved).slice(5);
    const KeptOptions options = unpack(ctx->saved_data["options"]);
    const size_t maps = std::get<0>(options).size();
    variable_list result(maps + 6);
    if (!grad.defined()) return result;
    bool of_features = false;
    for (size_t map = 0; map < maps; ++map) of_features |= ctx->needs_input_grad(map);
    if (of_features) {
      static const auto op = find_op<Backward>("roi_plugins::roi_extract_backward");
      const auto shapes = ctx->saved_data["feature_shapes"].toSymIntVector();
      const bool channels_last = ctx->saved_data["channels_last"].toBool();
      auto of_maps = std::apply(
          [&](const auto&... each) {
            return op.call(grad, argmax, rois, levels, offsets, seed, shapes, channels_last, each...);
          },
          options);
      std::move(of_maps.begin(), of_maps.end(), result.begin());
    }
    if (!features.empty()) {
      static const auto op = find_op<BackwardRois>("roi_plugins::roi_extract_backward_rois");
      std::tie(result[maps], result[maps + 2]) = std::apply(
          [&](const auto&... each) {
            return op.call(grad, argmax, features, rois, levels, offsets, seed, each...);
          },
          options);
      if (!offsets) result[maps + 2] = Tensor();
    }
    return result;
  }
};

void refuse_tangent(const Tensor& tensor) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      !(tensor.defined() && tensor._fw_grad(0).defined()),
      "roi_extract: forward-mode derivatives are not supported (torch.func.jvp, torch.func.jacfwd, "
      "torch.autograd.forward_ad); use backward or torch.autograd.grad");
}

std::tuple<Tensor, Tensor> differentiable_forward(
    at::TensorList features, const Tensor& rois, const OptionalTensor& levels,
    const OptionalTensor& offsets, const OptionalTensor& seed, ROI_OPTIONS) {
  for (const Tensor& map : features) refuse_tangent(map);
  refuse_tangent(rois);
  if (offsets) refuse_tangent(*offsets);
  if (!torch::autograd::compute_requires_grad(features, rois, offsets)) {
    return forward_below_autograd(features, rois, levels, offsets, seed, ROI_GIVEN_OPTIONS);
  }
  TORCH_CHECK_VALUE(
      !(rois.requires_grad() && rois.dim() == 2 && rois.sym_size(1) == 6 && reduction == "integral"),
      "rois: got rotated ones that require a gradient with reduction 'integral', expected reduction 'avg' or "
      "'max' for that gradient, or rois.detach()");
  const KeptOptions options{
      spatial_scale.vec(), output_size.vec(), region, sampling_ratio, reduction,
      aligned, min_samples, max_samples, position_sensitive};
  Tensor argmax;
  Tensor output = RoIExtract::apply(features, rois, levels, offsets, seed, options, &argmax);
  return {output, argmax};
}

template <typename Visit>
void for_each_tensor(c10::ArrayRef<c10::IValue> values, const Visit& visit) {
  for (const c10::IValue& value : values) {
    if (value.isTensor()) visit(value.toTensor());
    if (value.isTensorList()) {
      for (const Tensor& tensor : value.toTensorVector()) visit(tensor);
    }
  }
}

// Runs a backward op. Its results carry a derivative that raises an error when it is asked for.
void once_differentiable(
    const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  variable_list inputs;
  for_each_tensor(torch::jit::last(*stack, op.schema().arguments().size()), [&](const Tensor& tensor) {
    refuse_tangent(tensor);
    if (tensor.defined()) inputs.push_back(tensor);
  });
  NodePointer error;
  if (torch::autograd::compute_requires_grad(at::TensorList(inputs))) {
    error = make_node<torch::autograd::Error>(
        "roi_extract: second derivatives are not supported; call backward without create_graph",
        torch::autograd::collect_next_edges(inputs));
  }
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
  }
  if (error) {
    for_each_tensor(torch::jit::last(*stack, op.schema().returns().size()), [&](const Tensor& tensor) {
      torch::autograd::set_history(tensor, error);
    });
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(roi_plugins, Autograd, m) {
  m.impl("roi_extract", &differentiable_forward);
  m.impl("roi_extract_backward", torch::CppFunction::makeFromBoxedFunction<&once_differentiable>());
  m.impl("roi_extract_backward_rois", torch::CppFunction::makeFromBoxedFunction<&once_differentiable>());
}

}  // namespace roi_plugins
