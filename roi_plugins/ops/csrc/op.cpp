// The schema of the op, the checks of its arguments, and its entry points; the kernels are in cpu/, cuda/.
#include "op.h"
#include "results.h"

#include <ATen/Dispatch.h>
#include <torch/library.h>
#include <torch/version.h>

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <sstream>
#include <string>

namespace roi_plugins {
namespace {

#define ROI_STRING_OF(...) #__VA_ARGS__
#define ROI_STRING(...) ROI_STRING_OF(__VA_ARGS__)

// The torch that this library fits. library.py reads it from the file before it loads the library.
__attribute__((used)) const char kBuiltFor[] =
    "roi_plugins for torch " ROI_STRING(TORCH_VERSION_MAJOR) "." ROI_STRING(TORCH_VERSION_MINOR)
#if !_GLIBCXX_USE_CXX11_ABI
    " (pre-cxx11 ABI)"
#endif
#ifdef ROI_PLUGINS_WITH_CUDA
    " with CUDA " ROI_STRING(ROI_PLUGINS_WITH_CUDA) " for " ROI_STRING(ROI_PLUGINS_CARDS)
#endif
    ;

constexpr int64_t kMostSamples = 1 << 14;

Region parse_region(c10::string_view name) {
  if (name == "none") return Region::none;
  if (name == "round") return Region::round;
  if (name == "floor") return Region::floor;
  if (name == "bins") return Region::bins;
  TORCH_CHECK_VALUE(
      false, "region: got '", name, "', expected 'none', 'round', 'floor' or 'bins'");
}

}  // namespace

Options::Options(ROI_OPTIONS)
    : scales(spatial_scale.begin(), spatial_scale.end()) {
  TORCH_CHECK_VALUE(
      output_size.size() == 2 && output_size[0] > 0 && output_size[1] > 0 &&
          output_size[0] <= INT_MAX && output_size[1] <= INT_MAX,
      "output_size: got ", output_size, ", expected two positive sizes (height, width)");
  TORCH_CHECK_VALUE(
      reduction == "avg" || reduction == "max" || reduction == "integral",
      "reduction: got '", reduction, "', expected 'avg', 'max' or 'integral'");
  for (double scale : scales) {
    TORCH_CHECK_VALUE(
        std::isfinite(scale) && scale > 0, "spatial_scale: got ", scale,
        ", expected a positive number of cells per input pixel (1 / stride)");
  }
  const bool cells = !sampling_ratio.has_value(), integral = reduction == "integral";
  TORCH_CHECK_VALUE(
      cells || (*sampling_ratio >= 0 && *sampling_ratio <= kMostSamples), "sampling_ratio: got ",
      sampling_ratio.value_or(0),
      ", expected None (every cell), 0 (from the size of the RoI) or a number from 1 to ", kMostSamples);
  const int64_t most = max_samples.value_or(INT_MAX);
  TORCH_CHECK_VALUE(
      min_samples >= 1 && min_samples <= kMostSamples && min_samples <= most && most <= INT_MAX,
      "min_samples, max_samples: got ", min_samples, " and ", most,
      ", expected 1 <= min_samples <= max_samples, the former at most ", kMostSamples);
  const Region parsed = parse_region(region);
  TORCH_CHECK_VALUE(
      !integral || (parsed == Region::none && cells), "region, sampling_ratio: got '", region, "' and ",
      cells ? "None" : std::to_string(*sampling_ratio),
      " with reduction 'integral', expected 'none' and None, for it takes no samples");
  TORCH_CHECK_VALUE(
      integral ||
          (cells ? parsed != Region::none : parsed == Region::none || parsed == Region::round),
      "region, sampling_ratio: region '", region, "' does not go with ",
      cells ? "sampling_ratio None" : "a bilinear grid",
      "; the valid pairs are 'none' with a number (with None for reduction 'integral'), 'round' with a "
      "number or None, 'floor' and 'bins' with None");
  TORCH_CHECK_VALUE(
      !position_sensitive ||
          (reduction != "max" && (parsed == Region::none || (parsed == Region::round && cells))),
      "position_sensitive: got True with region '", region, "', sampling_ratio ",
      cells ? "None" : std::to_string(*sampling_ratio), " and reduction '", reduction,
      "', expected region 'none', or 'round' with None, and reduction 'avg' or 'integral'");
  const Sampling sampling = integral ? Sampling::integral : cells ? Sampling::cells : Sampling::grid;
  method = {
      parsed, sampling, sampling_ratio ? int(*sampling_ratio) : 0, int(min_samples), int(most),
      aligned, position_sensitive};
  max = reduction == "max";
  pooled_height = int(output_size[0]);
  pooled_width = int(output_size[1]);
}

at::ScalarType Options::argmax_type() const {
  const int64_t side = method.sampling_ratio > 0 ? method.sampling_ratio : method.max_samples;
  return method.sampling == Sampling::grid && side <= 15 ? at::kByte : at::kInt;
}

namespace {

void check_inputs(
    at::TensorList features, const at::Tensor& rois, const std::optional<at::Tensor>& levels,
    const Options& options) {
  TORCH_CHECK_VALUE(
      !features.empty() && features.size() <= kMaxLevels, "features: got ", features.size(),
      " maps, expected 1 to ", kMaxLevels);
  TORCH_CHECK_VALUE(
      features.size() == options.scales.size(), "spatial_scale: got ", options.scales.size(),
      " scales for ", features.size(), " maps, expected one a map");
  const at::Tensor& first = features[0];
  for (size_t l = 0; l < features.size(); ++l) {
    const at::Tensor& map = features[l];
    TORCH_CHECK_VALUE(
        map.dim() == 4, "features[", l, "]: got shape ", map.sizes(), ", expected (N, C, H, W)");
    TORCH_CHECK_TYPE(
        map.scalar_type() == first.scalar_type(), "features[", l, "]: got ", map.scalar_type(),
        ", expected the dtype of features[0], ", first.scalar_type());
    TORCH_CHECK_VALUE(
        map.device() == first.device(), "features[", l, "]: got device ", map.device(),
        ", expected that of features[0], ", first.device());
    TORCH_CHECK_VALUE(
        map.size(0) == first.size(0) && map.size(1) == first.size(1), "features[", l,
        "]: got shape ", map.sizes(), ", expected the images and channels of features[0], ",
        first.sizes());
    TORCH_CHECK_VALUE(
        map.size(2) > 0 && map.size(3) > 0 && map.size(2) < INT_MAX / 2 && map.size(3) < INT_MAX / 2,
        "features[", l, "]: got shape ", map.sizes(), ", expected a map of at least one cell");
    TORCH_CHECK_VALUE(
        !options.max || map.size(2) * map.size(3) < INT_MAX / 8, "features[", l, "]: got shape ",
        map.sizes(), ", expected at most 2^28 cells for reduction 'max', which stores an index");
  }
  const auto type = first.scalar_type();
  TORCH_CHECK_TYPE(
      type == at::kFloat || type == at::kDouble || type == at::kHalf || type == at::kBFloat16,
      "features: got dtype ", type, ", expected float32, float64, float16 or bfloat16");
  TORCH_CHECK_VALUE(
      rois.device() == first.device(), "rois: got device ", rois.device(),
      ", expected that of features, ", first.device());
  TORCH_CHECK_VALUE(
      rois.dim() != 2 || rois.size(0) == 0 || first.size(0) > 0, "features: got an empty batch for ",
      rois.size(0), " RoIs, expected at least one image");
  TORCH_CHECK_VALUE(
      levels.has_value() || features.size() == 1, "levels: got None for ", features.size(),
      " maps, expected the (K,) index of each RoI's map");
}

// The arguments that say where the RoIs lie, for forward and backward.
void check_rois(
    const at::Tensor& rois, const std::optional<at::Tensor>& levels,
    const std::optional<at::Tensor>& offsets, const std::optional<at::Tensor>& seed,
    const Options& options) {
  const Method& method = options.method;
  TORCH_CHECK_VALUE(
      rois.dim() == 2 && (rois.size(1) == 5 || rois.size(1) == 6), "rois: got shape ", rois.sizes(),
      ", expected (K, 5) rows of (batch_index, x1, y1, x2, y2), or rotated ones, (K, 6) of "
      "(batch_index, cx, cy, w, h, angle)");
  TORCH_CHECK_TYPE(
      at::isFloatingType(rois.scalar_type()), "rois: got dtype ", rois.scalar_type(),
      ", expected a floating type");
  const bool rotated = rois.size(1) == 6;
  TORCH_CHECK_VALUE(
      !rotated || (method.region == Region::none && !method.position_sensitive && !offsets.has_value()),
      "rois: got rotated ones, (K, 6), with a region, position_sensitive or offsets; expected region "
      "'none' without either");
  if (levels.has_value()) {
    TORCH_CHECK_VALUE(
        levels->dim() == 1 && levels->size(0) == rois.size(0), "levels: got shape ",
        levels->sizes(), ", expected (", rois.size(0), ",), one a RoI");
    TORCH_CHECK_TYPE(
        levels->scalar_type() == at::kLong || levels->scalar_type() == at::kInt,
        "levels: got dtype ", levels->scalar_type(), ", expected int64 or int32");
    TORCH_CHECK_VALUE(
        levels->device() == rois.device(), "levels: got device ", levels->device(),
        ", expected that of rois, ", rois.device());
  }
  if (offsets.has_value()) {
    TORCH_CHECK_VALUE(
        method.region == Region::none && method.sampling == Sampling::grid && !options.max &&
            !method.position_sensitive,
        "offsets: got some for a method that takes none; expected region 'none', a number for "
        "sampling_ratio and reduction 'avg', without position_sensitive");
    const std::vector<int64_t> size{
        rois.size(0), 2, options.pooled_height, options.pooled_width};
    TORCH_CHECK_VALUE(
        offsets->sizes() == size, "offsets: got shape ", offsets->sizes(), ", expected ",
        at::IntArrayRef(size), ", (x, y) of each bin");
    TORCH_CHECK_TYPE(
        at::isFloatingType(offsets->scalar_type()), "offsets: got dtype ", offsets->scalar_type(),
        ", expected a floating type");
    TORCH_CHECK_VALUE(
        offsets->device() == rois.device(), "offsets: got device ", offsets->device(),
        ", expected that of rois, ", rois.device());
  }
  if (seed.has_value()) {
    TORCH_CHECK_VALUE(
        method.sampling == Sampling::grid,
        "seed: got one for a method without samples; expected a number for sampling_ratio");
    TORCH_CHECK_VALUE(
        seed->numel() == 1, "seed: got shape ", seed->sizes(), ", expected one number");
    TORCH_CHECK_TYPE(
        seed->scalar_type() == at::kLong, "seed: got dtype ", seed->scalar_type(),
        ", expected int64");
    TORCH_CHECK_VALUE(
        seed->device() == rois.device(), "seed: got device ", seed->device(),
        ", expected that of rois, ", rois.device());
  }
}

// As to() and contiguous() do; where nothing is to be done, a call of to() takes a noticeable part of a small op.
at::Tensor dense(const at::Tensor& tensor, at::ScalarType type) {
  return (tensor.scalar_type() == type ? tensor : tensor.to(type)).contiguous();
}

Call make_call(
    const Options& options, at::ScalarType type, const at::Tensor& rois,
    const std::optional<at::Tensor>& levels, const std::optional<at::Tensor>& offsets,
    const std::optional<at::Tensor>& seed, std::vector<int64_t> feature_shapes,
    bool channels_last) {
  const at::ScalarType wide = accumulation_type(type);
  TORCH_CHECK_VALUE(
      feature_shapes[1] % (options.method.position_sensitive ? options.bins() : 1) == 0,
      "features: got ", feature_shapes[1], " channels with position_sensitive, expected a multiple of the ",
      options.bins(), " bins");
  return {
      options, dense(rois, wide), levels.has_value() ? dense(*levels, at::kLong) : at::Tensor(),
      offsets.has_value() ? dense(*offsets, wide) : at::Tensor(),
      seed.has_value() ? *seed : at::Tensor(), std::move(feature_shapes), channels_last};
}

std::vector<int64_t> shapes_of(at::TensorList features) {
  std::vector<int64_t> shapes{features[0].size(0), features[0].size(1)};
  for (const at::Tensor& map : features) {
    shapes.push_back(map.size(2));
    shapes.push_back(map.size(3));
  }
  return shapes;
}

std::vector<int64_t> output_size_of(const Call& call) {
  return {
      call.num_rois(), call.output_channels(), call.options.pooled_height,
      call.options.pooled_width};
}

void check_grad(const Call& call, const at::Tensor& grad, const at::Tensor& argmax) {
  const std::vector<int64_t> size = output_size_of(call);
  TORCH_CHECK_VALUE(
      grad.sizes() == size, "grad: got shape ", grad.sizes(), " for rois of shape ",
      call.rois.sizes(), ", expected ", at::IntArrayRef(size));
  const Options& options = call.options;
  TORCH_CHECK_VALUE(
      !options.max || (argmax.sizes() == size && argmax.scalar_type() == options.argmax_type()),
      "argmax: got shape ", argmax.sizes(), " and dtype ", argmax.scalar_type(),
      ", expected what forward returned");
  TORCH_CHECK_VALUE(
      grad.device() == call.rois.device(), "grad: got device ", grad.device(),
      ", expected that of rois, ", call.rois.device());
  TORCH_CHECK_VALUE(
      !options.max || argmax.device() == call.rois.device(), "argmax: got device ", argmax.device(),
      ", expected that of rois, ", call.rois.device());
}

using ForwardKernel = void(const Call&, at::TensorList, at::Tensor&, at::Tensor&);
using BackwardKernel =
    std::vector<at::Tensor>(const Call&, const at::Tensor&, const at::Tensor&);
using RoisBackwardKernel = void(
    const Call&, const at::Tensor&, const at::Tensor&, at::TensorList, at::Tensor&, at::Tensor&);

template <ForwardKernel kernel>
std::tuple<at::Tensor, at::Tensor> roi_extract(
    at::TensorList features, const at::Tensor& rois, const std::optional<at::Tensor>& levels,
    const std::optional<at::Tensor>& offsets, const std::optional<at::Tensor>& seed, ROI_OPTIONS) {
  const Options options(ROI_GIVEN_OPTIONS);
  check_rois(rois, levels, offsets, seed, options);
  check_inputs(features, rois, levels, options);
  const at::Tensor& first = features[0];
  const Call call = make_call(
      options, first.scalar_type(), rois, levels, offsets, seed, shapes_of(features),
      is_channels_last(first));
  check_batch_index(call);
  const std::vector<int64_t> size = output_size_of(call);
  at::Tensor output = new_result(size, first.options(), call.format());
  at::Tensor argmax = new_result(
      options.max ? at::IntArrayRef(size) : at::IntArrayRef({0}), first.options().dtype(options.argmax_type()),
      options.max ? call.format() : at::MemoryFormat::Contiguous);
  if (output.numel() > 0) kernel(call, features, output, argmax);
  return {output, argmax};
}

template <BackwardKernel kernel>
std::vector<at::Tensor> roi_extract_backward(
    const at::Tensor& grad, const at::Tensor& argmax, const at::Tensor& rois,
    const std::optional<at::Tensor>& levels, const std::optional<at::Tensor>& offsets,
    const std::optional<at::Tensor>& seed, at::IntArrayRef feature_shapes, bool channels_last,
    ROI_OPTIONS) {
  const Options options(ROI_GIVEN_OPTIONS);
  const size_t maps = options.scales.size();
  TORCH_CHECK_VALUE(
      maps >= 1 && maps <= kMaxLevels && feature_shapes.size() == 2 + 2 * maps &&
          *std::min_element(feature_shapes.begin() + 2, feature_shapes.end()) > 0,
      "feature_shapes: got ", feature_shapes, ", expected N, C and then H, W of each of ", maps,
      " maps");
  check_rois(rois, levels, offsets, seed, options);
  const Call call = make_call(
      options, grad.scalar_type(), rois, levels, offsets, seed, feature_shapes.vec(),
      channels_last);
  check_grad(call, grad, argmax);
  if (grad.numel() > 0) {
    check_batch_index(call);
    return kernel(
        call, grad.contiguous(call.format()),
        options.max ? argmax.contiguous(call.format()) : argmax);
  }
  std::vector<at::Tensor> grads;
  for (size_t l = 0; l < maps; ++l) {
    grads.push_back(at::zeros(
        {call.images(), call.channels(), call.height(l), call.width(l)}, grad.options()));
    grads.back() = grads.back().contiguous(call.format());
  }
  return grads;
}

template <RoisBackwardKernel kernel>
std::tuple<at::Tensor, at::Tensor> roi_extract_backward_rois(
    const at::Tensor& grad, const at::Tensor& argmax, at::TensorList features,
    const at::Tensor& rois, const std::optional<at::Tensor>& levels,
    const std::optional<at::Tensor>& offsets, const std::optional<at::Tensor>& seed, ROI_OPTIONS) {
  const Options options(ROI_GIVEN_OPTIONS);
  check_rois(rois, levels, offsets, seed, options);
  check_inputs(features, rois, levels, options);
  const Call call = make_call(
      options, features[0].scalar_type(), rois, levels, offsets, seed, shapes_of(features), false);
  check_grad(call, grad, argmax);
  TORCH_CHECK_NOT_IMPLEMENTED(
      !(call.rotated() && options.method.sampling == Sampling::integral),
      "rois: there is no gradient to rotated boxes with reduction 'integral'; detach them, or take a "
      "number for sampling_ratio and reduction 'avg'");
  at::Tensor parts = at::zeros({call.num_rois(), options.bins(), rois.size(1)}, call.rois.options());
  at::Tensor grad_offsets;
  if (offsets.has_value()) grad_offsets = at::zeros_like(call.offsets);
  // In a quantised region the samples do not move with the box.
  if (grad.numel() > 0 && options.method.region == Region::none) {
    check_batch_index(call);
    kernel(call, grad.to(features[0].scalar_type()), argmax, features, parts, grad_offsets);
  }
  return {
      parts.sum(1).to(rois.scalar_type()),
      offsets.has_value() ? grad_offsets.to(offsets->scalar_type())
                          : at::empty({0}, rois.options())};
}

// The level rules of MMDetection and Detectron2 (levels.py). On tensors, because torch's vectorised logarithm may
// differ from std::log2 in the last digit, and a box on a threshold would get another level than there.
at::Tensor assign_levels(
    const at::Tensor& rois, int64_t num_levels, double canonical_size, int64_t canonical_level,
    int64_t min_level, double epsilon) {
  const at::NoGradGuard levels_are_whole_numbers;
  at::Tensor area;
  // Not size(1), at which tracing would take every size for a constant.
  if (rois.sym_size(1) == 6) {  // (batch_index, cx, cy, w, h, angle)
    area = rois.select(1, 3).to(at::kFloat) * rois.select(1, 4).to(at::kFloat);
  } else {
    const at::Tensor boxes = rois.slice(1, -4).to(at::kFloat);
    area = (boxes.select(1, 2) - boxes.select(1, 0)) * (boxes.select(1, 3) - boxes.select(1, 1));
  }
  const at::Tensor exact = at::log2(at::sqrt(area) / canonical_size + epsilon) + canonical_level;
  const at::Tensor level = at::clamp(at::floor(exact), min_level, min_level + num_levels - 1) - min_level;
  // Devices convert NaN to different integers.
  return at::where(at::isnan(level), -1, level).to(at::kLong);
}

}  // namespace

void check_batch_index(const Call& call) {
  const bool on_cpu = call.rois.is_cpu();
  // On other devices a look at the indices makes the host wait, so it is only done when asked for.
  if (!on_cpu) {
    const char* const wanted = std::getenv("ROI_PLUGINS_CHECK");
    if (wanted == nullptr || c10::string_view(wanted) != "1") return;
  }
  const at::Tensor rois = on_cpu ? call.rois : call.rois.cpu();
  AT_DISPATCH_FLOATING_TYPES(rois.scalar_type(), "check_batch_index", [&] {
    const auto rows = rois.accessor<scalar_t, 2>();
    for (int64_t k = 0; k < rows.size(0); ++k) {
      TORCH_CHECK_INDEX(
          batch_index_is_valid(rows[k][0], call.images()), "rois: RoI ", k,
          " has the batch index ", rows[k][0], ", expected one of the ", call.images(),
          " images of features (0 to ", call.images() - 1, ")");
    }
  });
}

constexpr char kSchemas[] =
#include "../schemas.inc"
    ;

TORCH_LIBRARY(roi_plugins, m) {
  std::istringstream lines(kSchemas);
  for (std::string schema; std::getline(lines, schema);) {
    if (!schema.empty()) m.def(schema.c_str());
  }
}

TORCH_LIBRARY_IMPL(roi_plugins, CompositeImplicitAutograd, m) {
  m.impl("assign_levels", &assign_levels);
  m.impl("release_memory", &release_memory);
}

TORCH_LIBRARY_IMPL(roi_plugins, CPU, m) {
  m.impl("roi_extract", &roi_extract<forward_cpu>);
  m.impl("roi_extract_backward", &roi_extract_backward<backward_cpu>);
  m.impl("roi_extract_backward_rois", &roi_extract_backward_rois<backward_rois_cpu>);
}

#ifdef ROI_PLUGINS_WITH_CUDA
TORCH_LIBRARY_IMPL(roi_plugins, CUDA, m) {
  m.impl("roi_extract", &roi_extract<forward_cuda>);
  m.impl("roi_extract_backward", &roi_extract_backward<backward_cuda>);
  m.impl("roi_extract_backward_rois", &roi_extract_backward_rois<backward_rois_cuda>);
}
#endif

}  // namespace roi_plugins
