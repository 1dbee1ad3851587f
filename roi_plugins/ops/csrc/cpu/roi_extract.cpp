// The op on the CPU: the loops over RoIs and channels, whatever the reduction (docs/kernels.md).
//
// In both layouts a vector is a run of channels of one cell. channels_last has them side by side. In NCHW
// the window of the map that a RoI reads is transposed into scratch memory, a block of channels at a time,
// and its bins are transposed back: all else is the same code. Backward runs in parallel over channels, so
// that no two threads meet in a cell and the sums do not depend on how many threads there are.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include "loops.h"
#include "reductions.h"
#include "rois.h"

namespace roi_plugins {
namespace {

// What is made once for all channels: the tables of the RoIs (empty for those that read nothing), and
// the order to visit them in: by map and image, since those that share one share its cache lines and pages.
template <typename Reduction>
struct Plan {
  struct Tables {
    typename Reduction::AxisTable y, x;
  };
  std::vector<Tables> tables;
  std::vector<int64_t> order;

  explicit Plan(const Rois<typename Reduction::A>& rois)
      : tables(rois.call.num_rois()), order(rois.call.num_rois()) {
    const Options& options = rois.call.options;
    std::vector<int64_t> image(order.size());
    at::parallel_for(0, int64_t(tables.size()), 16, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        order[k] = k;
        if (rois.state(k) != RoiState::read) continue;
        image[k] = rois.level(k) * rois.call.images() + rois.image(k);
        tables[k].y.resolve(options.method, rois.y_axis(k), options.pooled_height);
        tables[k].x.resolve(options.method, rois.x_axis(k), options.pooled_width);
      }
    });
    std::stable_sort(
        order.begin(), order.end(), [&](int64_t a, int64_t b) { return image[a] < image[b]; });
  }
};

// Where a RoI's window lies in the planes of an image, and how wide the window is in scratch memory: the
// transposes take eight columns at a time, so it is widened to a multiple where the map allows it.
struct PlaneWindow {
  int64_t first_row, rows, first_column, columns, row, plane;

  PlaneWindow(const CellRange& y, const CellRange& x, int64_t height, int64_t width)
      : first_row(y.first()), rows(y.count()), first_column(x.first()), columns(x.count()),
        row(width), plane(height * width) {
    const int64_t wide = (columns + 7) / 8 * 8;
    if (wide > width) return;
    columns = wide;
    first_column = std::min(first_column, width - wide);
  }
  int64_t origin() const { return first_row * row + first_column; }
  // The number that cell (0, 0) of the map would have in the window.
  int64_t first_cell() const { return -(first_row * columns + first_column); }
};

// The channels of which a thread holds windows at a time: few enough for the cache, and for every thread
// to have some.
int64_t channel_block(int64_t channels) {
  const int64_t share = (channels + at::get_num_threads() - 1) / at::get_num_threads();
  return std::min((share + 7) / 8 * 8, int64_t(32));
}

template <typename Reduction, typename S>
void forward_channels_last(
    const Call& call, at::TensorList maps, S* output, typename Reduction::Index* winner) {
  const Rois<typename Reduction::A> rois{call};
  const Plan<Reduction> plan(rois);
  const int64_t channels = call.channels(), size = channels * call.options.bins();
  at::parallel_for(0, call.num_rois(), 1, [&](int64_t begin, int64_t end) {
    Reduction reduction;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t k = plan.order[i];
      S* const to = output + k * size;
      typename Reduction::Index* const winner_to = winner + k * size;
      if (rois.state(k) != RoiState::read) {
        std::fill_n(to, size, rois.template fill<S>(k));
        if (Reduction::has_winner) std::fill_n(winner_to, size, -1);
        continue;
      }
      reduction.combine(plan.tables[k].y, plan.tables[k].x, 0, rois.width(k));
      const at::Tensor& map = maps[rois.level(k)];
      reduction.forward(
          to, winner_to, channels, map.const_data_ptr<S>() + rois.image_offset(k), channels,
          channels);
    }
  });
}

template <typename Reduction, typename S>
void forward_planes(
    const Call& call, at::TensorList maps, S* output, typename Reduction::Index* winner) {
  const Rois<typename Reduction::A> rois{call};
  const Plan<Reduction> plan(rois);
  const int64_t channels = call.channels(), bins = call.options.bins();
  const int64_t block = channel_block(channels), blocks = (channels + block - 1) / block;
  // A thread keeps to its channels where there are enough, since RoIs share cells.
  const int64_t parts = (at::get_num_threads() + blocks - 1) / blocks;
  const int64_t part = (call.num_rois() + parts - 1) / parts;
  at::parallel_for(0, blocks * parts, 1, [&](int64_t begin, int64_t end) {
    Reduction reduction;
    std::vector<S> window, rows(block * bins);
    std::vector<typename Reduction::Index> winners(Reduction::has_winner ? block * bins : 0);
    for (int64_t t = begin; t < end; ++t) {
      const int64_t first = t / parts * block, n = std::min(block, channels - first);
      const int64_t last_roi = std::min((t % parts + 1) * part, call.num_rois());
      for (int64_t r = t % parts * part; r < last_roi; ++r) {
        const int64_t k = plan.order[r];
        const int64_t offset = (k * channels + first) * bins;
        if (rois.state(k) != RoiState::read) {
          std::fill_n(output + offset, n * bins, rois.template fill<S>(k));
          if (Reduction::has_winner) std::fill_n(winner + offset, n * bins, -1);
          continue;
        }
        const auto& [y, x] = plan.tables[k];
        const PlaneWindow place(y.cells, x.cells, rois.height(k), rois.width(k));
        const at::Tensor& map = maps[rois.level(k)];
        const S* const from = map.const_data_ptr<S>() + rois.image_offset(k) +
            first * place.plane + place.origin();
        const size_t size = place.rows * place.columns * n;
        if (window.size() < size) window.resize(size);  // never less: growing again costs zeros
        for (int64_t i = 0; i < place.rows; ++i) {
          if (!y.cells.reads(i)) continue;
          transpose<false>(
              window.data() + i * place.columns * n, n, from + i * place.row, place.plane, n,
              place.columns);
        }
        reduction.combine(y, x, place.first_cell(), place.columns);
        reduction.forward(rows.data(), winners.data(), n, window.data(), n, n);
        transpose<false>(output + offset, bins, rows.data(), n, bins, n);
        if (Reduction::has_winner) {
          transpose<false>(winner + offset, bins, winners.data(), n, bins, n);
        }
      }
    }
  });
}

template <typename Reduction, typename S, typename A>
void backward_channels_last(
    const Call& call, const S* grad, const typename Reduction::Index* winner,
    const std::vector<A*>& sums) {
  constexpr int64_t kUnit = 16;  // channels that stay together: a cache line of float32
  const Rois<A> rois{call};
  const Plan<Reduction> plan(rois);
  const int64_t channels = call.channels(), size = channels * call.options.bins();
  const int64_t units = (channels + kUnit - 1) / kUnit;
  at::parallel_for(0, units, 1, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kUnit, n = std::min(end * kUnit, channels) - first;
    Reduction reduction;
    for (const int64_t k : plan.order) {
      if (rois.state(k) != RoiState::read) continue;
      reduction.combine(plan.tables[k].y, plan.tables[k].x, 0, rois.width(k));
      reduction.backward(
          sums[rois.level(k)] + rois.image_offset(k) + first, channels, grad + k * size + first,
          winner + k * size + first, channels, n);
    }
  });
}

template <typename Reduction, typename S, typename A>
void backward_planes(
    const Call& call, const S* grad, const typename Reduction::Index* winner,
    const std::vector<A*>& sums) {
  const Rois<A> rois{call};
  const Plan<Reduction> plan(rois);
  const int64_t channels = call.channels(), bins = call.options.bins();
  const int64_t block = channel_block(channels), blocks = (channels + block - 1) / block;
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    Reduction reduction;
    std::vector<A> window;
    std::vector<S> rows(block * bins);
    std::vector<typename Reduction::Index> winners(Reduction::has_winner ? block * bins : 0);
    for (int64_t first = begin * block; first < std::min(end * block, channels); first += block) {
      const int64_t n = std::min(block, channels - first);
      for (const int64_t k : plan.order) {
        if (rois.state(k) != RoiState::read) continue;
        const int64_t offset = (k * channels + first) * bins;
        transpose<false>(rows.data(), n, grad + offset, bins, n, bins);
        if (Reduction::has_winner) {
          transpose<false>(winners.data(), n, winner + offset, bins, n, bins);
        }
        const auto& [y, x] = plan.tables[k];
        const PlaneWindow place(y.cells, x.cells, rois.height(k), rois.width(k));
        window.assign(place.rows * place.columns * n, A(0));
        reduction.combine(y, x, place.first_cell(), place.columns);
        reduction.backward(window.data(), n, rows.data(), winners.data(), n, n);
        A* const to = sums[rois.level(k)] + rois.image_offset(k) + first * place.plane +
            place.origin();
        for (int64_t i = 0; i < place.rows; ++i) {
          if (!y.cells.reads(i)) continue;
          transpose<true>(
              to + i * place.row, place.plane, window.data() + i * place.columns * n, n,
              place.columns, n);
        }
      }
    }
  });
}

// Calls work(S(), Reduction) with the element type and the reduction of a call.
template <typename Work>
void dispatch(const Call& call, at::ScalarType type, Work&& work) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "roi_extract", [&] {
    if (!call.options.max) {
      work(scalar_t(), Average<scalar_t>());
    } else if (call.options.winner_type() == at::kByte) {
      work(scalar_t(), Maximum<scalar_t, uint8_t>());
    } else {
      work(scalar_t(), Maximum<scalar_t, int32_t>());
    }
  });
}

}  // namespace

void forward_cpu(
    const Call& call, at::TensorList features, at::Tensor& output, at::Tensor& winner) {
  std::vector<at::Tensor> maps;
  for (const at::Tensor& map : features) maps.push_back(map.contiguous(call.format()));
  dispatch(call, output.scalar_type(), [&](auto element, auto reduction) {
    using S = decltype(element);
    using Reduction = decltype(reduction);
    typename Reduction::Index* winners = nullptr;
    if constexpr (Reduction::has_winner) {
      winners = winner.data_ptr<typename Reduction::Index>();
    }
    if (call.channels_last) {
      forward_channels_last<Reduction>(call, maps, output.data_ptr<S>(), winners);
    } else {
      forward_planes<Reduction>(call, maps, output.data_ptr<S>(), winners);
    }
  });
}

std::vector<at::Tensor> backward_cpu(
    const Call& call, const at::Tensor& grad, const at::Tensor& winner) {
  std::vector<at::Tensor> maps;
  for (int64_t l = 0; l < call.num_levels(); ++l) {
    // Not at::zeros, which knows no memory format.
    maps.push_back(at::empty(
        {call.images(), call.channels(), call.height(l), call.width(l)},
        grad.options()
            .dtype(accumulation_type(grad.scalar_type()))
            .memory_format(call.format())).zero_());
  }
  dispatch(call, grad.scalar_type(), [&](auto element, auto reduction) {
    using S = decltype(element);
    using Reduction = decltype(reduction);
    std::vector<typename Reduction::A*> sums;
    for (at::Tensor& map : maps) sums.push_back(map.data_ptr<typename Reduction::A>());
    const typename Reduction::Index* winners = nullptr;
    if constexpr (Reduction::has_winner) {
      winners = winner.const_data_ptr<typename Reduction::Index>();
    }
    if (call.channels_last) {
      backward_channels_last<Reduction>(call, grad.const_data_ptr<S>(), winners, sums);
    } else {
      backward_planes<Reduction>(call, grad.const_data_ptr<S>(), winners, sums);
    }
  });
  for (at::Tensor& map : maps) map = map.to(grad.scalar_type());
  return maps;
}

}  // namespace roi_plugins
