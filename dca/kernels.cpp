// On the CPU: the mixing of dca/mix.py, and the products of a few rows with a matrix, in float32.
//
// Mixing. A row is the d features of one token. Rows are taken kTile at a time and entry by entry,
// so that a tile stays in the cache between the looks the mathematics needs (scores, sums, norms)
// and main memory sees each entry once forward and once backward. Weights per token and feature
// exist in registers only, and the backward pass makes the mixtures again instead of loading them.
// Rows are float32 or bfloat16, side by side; parameters, scores, norms and sums are float32.
//
// Results depend on the number of threads (each sums its own rows) but not on their timing.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace {

#ifdef __AVX512F__
constexpr int kLanes = 16;  // floats per step; widths are multiples of it
#else
constexpr int kLanes = 8;
#endif
constexpr int kTile = 4;    // rows that share each load of b

typedef float Vec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }

typedef uint32_t Bits __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

inline Vec widen(const uint16_t* p) {
  const Bits bits = __builtin_convertvector(*reinterpret_cast<const Halves*>(p), Bits) << 16;
  Vec v;
  std::memcpy(&v, &bits, sizeof(v));
  return v;
}

// To the nearest bfloat16, of two the even one; a NaN stays one.
inline void narrow(uint16_t* p, Vec v) {
  Bits bits;
  std::memcpy(&bits, &v, sizeof(v));
  const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Bits half = (bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded;
  *reinterpret_cast<Halves*>(p) = __builtin_convertvector(half, Halves);
}

// Rows of one tensor. H is whether any tensor of a call is bfloat16: without, all is as in float32.
template <bool H>
struct Rows {
  void* data;
  bool half;

  explicit operator bool() const { return data; }
  Vec load(long i) const {
    if (H && half) return widen(static_cast<const uint16_t*>(data) + i);
    return ::load(static_cast<const float*>(data) + i);
  }
  void store(long i, Vec v) const {
    if (H && half) return narrow(static_cast<uint16_t*>(data) + i, v);
    ::store(static_cast<float*>(data) + i, v);
  }
  const void* at(long i) const {
    return static_cast<const char*>(data) + i * (H && half ? sizeof(uint16_t) : sizeof(float));
  }
};

template <int lanes>
struct Lanes {
  typedef float Type __attribute__((vector_size(4 * lanes)));
};

template <int lanes>
inline float sum(typename Lanes<lanes>::Type v) {
  if constexpr (lanes == 2) {
    return v[0] + v[1];
  } else {
    typename Lanes<lanes / 2>::Type half[2];
    std::memcpy(half, &v, sizeof(v));
    return sum<lanes / 2>(half[0] + half[1]);
  }
}
inline float sum(Vec v) { return sum<kLanes>(v); }

struct Shape {
  long rows;
  int entries, width;
  bool norm;
  float eps;

  // Of rows in scratch memory: padded, or rows 2 or 4 kB apart compete for one place in the cache.
  int stride() const { return width + kLanes; }
};

// What the forward pass leaves for the backward pass, per row: w . f before and 1 / rms of each
// entry, and 1 / rms of each mixture.
struct Saved {
  float* score;  // [rows, outputs, entries], normed, before the clamp
  float* scale;  // [rows, entries]
  float* rho;    // [rows, outputs]
};

// relu(score) of R rows, to [entries, R, outputs]; zeros where there are no scores.
template <int O, int R>
void clamp_scores(int n, const float* score, long row, float* clamped) {
  for (int i = 0; i < n; ++i)
    for (int r = 0; r < R; ++r)
      for (int o = 0; o < O; ++o)
        *clamped++ = score ? std::max(score[((row + r) * O + o) * n + i], 0.0f) : 0.0f;
}

// Adds (b_i + relu(score_i)) * f_i, of P entries from `first` on and R rows, to mixed[row][output].
// A few entries at a time: their sums stay in registers, and their rows, which fall on the same
// places of the cache, do not yet evict each other.
template <int O, int R, int P, bool H>
void add_entries(const Shape& s, int first, const Rows<H>* f, const float* b, const float* clamped,
                 long row, float* mixed) {
  const int n = s.entries, d = s.width, stride = s.stride();
  for (int j = 0; j < d; j += kLanes) {
    Vec total[R][O] = {};
    for (int r = 0; first && r < R; ++r)
      for (int o = 0; o < O; ++o) total[r][o] = load(mixed + (r * O + o) * stride + j);
    for (int i = first; i < first + P; ++i) {
      Vec x[R];
      for (int r = 0; r < R; ++r) x[r] = f[i].load((row + r) * d + j);
      for (int o = 0; o < O; ++o) {
        const Vec weight = load(b + (o * n + i) * long(d) + j);
        for (int r = 0; r < R; ++r) total[r][o] += (weight + clamped[(i * R + r) * O + o]) * x[r];
      }
    }
    for (int r = 0; r < R; ++r)
      for (int o = 0; o < O; ++o) store(mixed + (r * O + o) * stride + j, total[r][o]);
  }
}

// g = sum_i (b_i + relu(score_i)) * f_i for R rows, to mixed[row][output].
template <int O, int R, bool H>
void mix_rows(const Shape& s, const Rows<H>* f, const float* b, const float* clamped, long row,
              float* mixed) {
  int i = 0;
  for (; i + 4 <= s.entries; i += 4) add_entries<O, R, 4>(s, i, f, b, clamped, row, mixed);
  for (; i < s.entries; ++i) add_entries<O, R, 1>(s, i, f, b, clamped, row, mixed);
}

template <bool H>
struct Forward {
  Shape s;
  const Rows<H>* f;
  const float *b, *w, *gain;
  Rows<H> skip;
  const Rows<H>* y;
  Saved saved;
};

template <int O, int R, bool H>
void forward_rows(const Forward<H>& k, long row, float* mixed, float* clamped) {
  const int n = k.s.entries, d = k.s.width, stride = k.s.stride();
  for (int i = 0; k.w && i < n; ++i) {
    Vec square[R] = {}, dot[R][O] = {};
    for (int j = 0; j < d; j += kLanes)
      for (int r = 0; r < R; ++r) {
        const Vec value = k.f[i].load((row + r) * d + j);
        __builtin_prefetch(k.f[i].at((row + R + r) * d + j));
        square[r] += value * value;
        for (int o = 0; o < O; ++o) dot[r][o] += load(k.w + o * d + j) * value;
      }
    for (int r = 0; r < R; ++r) {
      const long t = row + r;
      const float scale = k.s.norm ? 1 / std::sqrt(sum(square[r]) / d + k.s.eps) : 1;
      k.saved.scale[t * n + i] = scale;
      for (int o = 0; o < O; ++o) k.saved.score[(t * O + o) * n + i] = scale * sum(dot[r][o]);
    }
  }
  clamp_scores<O, R>(n, k.w ? k.saved.score : nullptr, row, clamped);
  mix_rows<O, R>(k.s, k.f, k.b, clamped, row, mixed);
  for (int r = 0; r < R; ++r) {
    const long t = row + r;
    for (int o = 0; o < O; ++o) {
      const float* g = mixed + (r * O + o) * stride;
      Vec square = {};
      for (int j = 0; j < d; j += kLanes) square += load(g + j) * load(g + j);
      const float rho = 1 / std::sqrt(sum(square) / d + k.s.eps);
      k.saved.rho[t * O + o] = rho;
      for (int j = 0; j < d; j += kLanes)
        k.y[o].store(t * d + j, load(k.gain + o * d + j) * (load(g + j) * rho));
    }
    for (int j = 0; j < d; j += kLanes) k.skip.store(t * d + j, load(mixed + r * O * stride + j));
  }
}

// Turns the mixture g into its gradient: through the norm, and directly for the skip.
template <bool H>
void norm_backward(const Shape& s, float* g, const float* gain, float rho, Rows<H> dy,
                   Rows<H> dskip, long at, float* dgain) {
  Vec along = {};
  for (int j = 0; dy && j < s.width; j += kLanes) {
    const Vec unit = load(g + j) * rho, up = dy.load(at + j);
    store(dgain + j, load(dgain + j) + up * unit);
    along += load(gain + j) * up * unit;
  }
  const float mean = sum(along) / s.width;
  for (int j = 0; j < s.width; j += kLanes) {
    Vec total = dskip ? dskip.load(at + j) : Vec{};
    if (dy) total += rho * (load(gain + j) * dy.load(at + j) - mean * (load(g + j) * rho));
    store(g + j, total);
  }
}

template <bool H>
struct Backward {
  Shape s;
  const Rows<H>* f;
  const float *b, *w, *gain;
  Saved saved;
  Rows<H> dskip;
  const Rows<H> *dy, *later, *df;
};

// Sums over the rows of one thread.
struct Sums {
  float *b, *w, *gain;
};

template <int O, int R, bool H>
void backward_rows(const Backward<H>& k, long row, float* mixed, float* clamped, Sums sums) {
  const int n = k.s.entries, d = k.s.width, stride = k.s.stride();
  clamp_scores<O, R>(n, k.w ? k.saved.score : nullptr, row, clamped);
  mix_rows<O, R>(k.s, k.f, k.b, clamped, row, mixed);
  for (int r = 0; r < R; ++r)
    for (int o = 0; o < O; ++o)
      norm_backward(k.s, mixed + (r * O + o) * stride, k.gain + o * d, k.saved.rho[(row + r) * O + o],
                    k.dy[o], o == 0 ? k.dskip : Rows<H>{}, (row + r) * d, sums.gain + o * d);
  for (int i = 0; i < n; ++i) {
    float to_w[R][O] = {}, to_x[R] = {};
    if (k.w) {
      Vec dot[R][O] = {};
      for (int j = 0; j < d; j += kLanes)
        for (int r = 0; r < R; ++r) {
          const Vec x = k.f[i].load((row + r) * d + j);
          const long next = (row + R + r) * d + j;
          __builtin_prefetch(k.f[i].at(next));
          if (k.later[i]) __builtin_prefetch(k.later[i].at(next));
          __builtin_prefetch(k.df[i].at(next), 1);
          for (int o = 0; o < O; ++o) dot[r][o] += load(mixed + (r * O + o) * stride + j) * x;
        }
      for (int r = 0; r < R; ++r) {
        const float scale = k.saved.scale[(row + r) * n + i];
        for (int o = 0; o < O; ++o) {
          const float score = k.saved.score[((row + r) * O + o) * n + i];
          to_w[r][o] = score >= 0 ? sum(dot[r][o]) * scale : 0;
          if (k.s.norm) to_x[r] += to_w[r][o] * score * scale / d;
        }
      }
    }
    for (int j = 0; j < d; j += kLanes) {
      Vec x[R], total[R];
      for (int r = 0; r < R; ++r) {
        x[r] = k.f[i].load((row + r) * d + j);
        total[r] = k.later[i] ? k.later[i].load((row + r) * d + j) : Vec{};
        total[r] -= to_x[r] * x[r];
      }
      for (int o = 0; o < O; ++o) {
        float* sum_b = sums.b + (o * n + i) * long(d) + j;
        const Vec weight = load(k.b + (o * n + i) * long(d) + j);
        Vec of_b = load(sum_b);
        for (int r = 0; r < R; ++r) {
          const Vec g = load(mixed + (r * O + o) * stride + j);
          total[r] += (weight + clamped[(i * R + r) * O + o]) * g;
          of_b += g * x[r];
        }
        store(sum_b, of_b);
        if (!k.w) continue;
        const Vec read = load(k.w + o * d + j);
        Vec of_w = load(sums.w + o * d + j);
        for (int r = 0; r < R; ++r) {
          total[r] += to_w[r][o] * read;
          of_w += to_w[r][o] * x[r];
        }
        store(sums.w + o * d + j, of_w);
      }
      for (int r = 0; r < R; ++r) k.df[i].store((row + r) * d + j, total[r]);
    }
  }
}

// Calls tiles(row, scratch, thread) for every R rows, and single for each of those left over. Scratch
// memory is of the thread, `size` floats.
template <int R, typename Tiles, typename Single>
void over_tiles(long rows, long size, int threads, Tiles tiles, Single single) {
  const long whole = rows - rows % R;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> scratch(size);
    const int thread = omp_get_thread_num();
#pragma omp for schedule(static) nowait
    for (long row = 0; row < whole; row += R) tiles(row, scratch.data(), thread);
#pragma omp for schedule(static)
    for (long row = whole; row < rows; ++row) single(row, scratch.data(), thread);
  }
}

// Calls work<R>(row, mixed, clamped, thread) for all rows, kTile of them at a time while there are.
template <typename Tiles, typename Single>
void over_rows(const Shape& s, int outputs, int threads, Tiles tiles, Single single) {
  const long mixed = long(kTile) * outputs * s.stride(), clamped = long(kTile) * outputs * s.entries;
  over_tiles<kTile>(
      s.rows, mixed + clamped, threads,
      [&](long row, float* scratch, int thread) { tiles(row, scratch, scratch + mixed, thread); },
      [&](long row, float* scratch, int thread) { single(row, scratch, scratch + mixed, thread); });
}

template <int O, bool H>
void forward(const Forward<H>& k, int threads) {
  over_rows(
      k.s, O, threads,
      [&](long row, float* mixed, float* clamped, int) {
        forward_rows<O, kTile>(k, row, mixed, clamped);
      },
      [&](long row, float* mixed, float* clamped, int) {
        forward_rows<O, 1>(k, row, mixed, clamped);
      });
}

// The sums of all threads, whose memory begins `size` apart.
void total_of(const float* first, long size, int threads, long count, float* out) {
  for (long i = 0; i < count; ++i) {
    out[i] = 0;
    for (int thread = 0; thread < threads; ++thread) out[i] += first[thread * size + i];
  }
}

template <int O, bool H>
void backward(const Backward<H>& k, float* db, float* dw, float* dgain, int threads) {
  const long size_b = long(O) * k.s.entries * k.s.width, size_o = long(O) * k.s.width;
  const long size = size_b + 2 * size_o;
  std::vector<float> partial(threads * size);
  const auto sums = [&](int thread) {
    float* mine = partial.data() + thread * size;
    return Sums{mine, mine + size_b, mine + size_b + size_o};
  };
  over_rows(
      k.s, O, threads,
      [&](long row, float* mixed, float* clamped, int thread) {
        backward_rows<O, kTile>(k, row, mixed, clamped, sums(thread));
      },
      [&](long row, float* mixed, float* clamped, int thread) {
        backward_rows<O, 1>(k, row, mixed, clamped, sums(thread));
      });
  total_of(sums(0).b, size, threads, size_b, db);
  if (k.w) total_of(sums(0).w, size, threads, size_o, dw);
  total_of(sums(0).gain, size, threads, size_o, dgain);
}

// The rows of entries, or, with `outputs`, of so many tensors of the type of y.
template <bool H>
std::vector<Rows<H>> rows_of(void* const* data, const int* half, int entries, int outputs = 0) {
  std::vector<Rows<H>> found(outputs ? outputs : entries);
  for (size_t i = 0; i < found.size(); ++i)
    found[i] = {data[i], half[outputs ? entries + 1 : i] != 0};
  return found;
}

// Calls work with std::true_type if there is any bfloat16.
template <typename Work>
void with_types(const int* half, int entries, Work work) {
  const bool any = std::any_of(half, half + entries + 2, [](int one) { return one; });
  any ? work(std::true_type{}) : work(std::false_type{});
}

// Sums with weights that the caller gives (dca.mix.weighted_sums), O of them of the same entries:
//
//   g_o = sum_i (b_oi + weight_oi) * f_i,    y_o = gain_o * g_o / rms(g_o)
//
// A weight is a number per token and group of features; b, where there is one, a vector for all
// tokens. A block is P entries of R rows, whose O sums are in registers. Without b nothing is shared
// by rows: R is 1, P is more, O is all outputs, and the rows of a tile are taken one by one for each
// block, since memory is faster where more of it is read in one piece. With b, kTile rows share each
// load of it; outputs are then made one by one, from the cache.
template <bool H>
struct Weighted {
  Shape s;
  int outputs, groups;
  const Rows<H>* f;
  const float* weights;      // [rows, outputs, entries, groups], or null
  const float* b;            // [outputs, entries, width], or null
  const float* const* gain;  // of each output; null without a norm
  float* rho;                // [rows, outputs]: 1 / rms of each sum with a norm

  // The weights of a token's groups are adjacent.
  long weight_at(long row, int o, int i) const {
    return ((row * outputs + o) * s.entries + i) * groups;
  }
};

template <int O, int R, int P>
struct Block {
  int output, entry;  // the first ones
  long row;
};

// The weights of one group of a block.
template <int O, int R, int P, bool H>
void read_weights(const Weighted<H>& k, Block<O, R, P> at, int group, float (*out)[R][O]) {
  for (int p = 0; p < P; ++p)
    for (int r = 0; r < R; ++r)
      for (int o = 0; o < O; ++o) {
        const long from = k.weight_at(at.row + r, at.output + o, at.entry + p) + group;
        out[p][r][o] = k.weights ? k.weights[from] : 0.0f;
      }
}

// Adds a block to the sums in `mixed`, [rows, outputs] from the block's first on.
template <bool B, int O, int R, int P, bool H>
void add_block(const Weighted<H>& k, Block<O, R, P> at, float* mixed) {
  const int n = k.s.entries, d = k.s.width, size = d / k.groups;
  const int stride = k.s.stride(), step = k.outputs * stride;
  for (int group = 0; group < k.groups; ++group) {
    float weight[P][R][O];
    read_weights(k, at, group, weight);
    for (int j = group * size; j < (group + 1) * size; j += kLanes) {
      Vec total[R][O] = {};
      for (int r = 0; at.entry && r < R; ++r)
        for (int o = 0; o < O; ++o) total[r][o] = load(mixed + r * step + o * stride + j);
      for (int p = 0; p < P; ++p) {
        const int i = at.entry + p;
        Vec x[R];
        for (int r = 0; r < R; ++r) x[r] = k.f[i].load((at.row + r) * d + j);
        for (int o = 0; o < O; ++o) {
          const Vec shared = B ? load(k.b + ((at.output + o) * n + i) * long(d) + j) : Vec{};
          for (int r = 0; r < R; ++r) total[r][o] += (shared + weight[p][r][o]) * x[r];
        }
      }
      for (int r = 0; r < R; ++r)
        for (int o = 0; o < O; ++o) store(mixed + r * step + o * stride + j, total[r][o]);
    }
  }
}

// Calls work(block, its place in `mixed`) for all outputs and entries and `rows` rows, with blocks of
// the largest of P0, 4 and 1 entries that fit.
template <int O, int R, int P0, bool H, typename Work>
void over_blocks(const Weighted<H>& k, long row, int rows, float* mixed, Work work) {
  const int stride = k.s.stride();
  for (int o = 0; o < k.outputs; o += O) {
    int i = 0;
    const auto blocks = [&](auto size) {
      for (; i + size <= k.s.entries; i += size)
        for (int r = 0; r < rows; r += R)
          work(Block<O, R, decltype(size)::value>{o, i, row + r},
               mixed + (r * k.outputs + o) * stride);
    };
    if constexpr (P0 > 4) blocks(std::integral_constant<int, P0>{});
    if constexpr (P0 > 1) blocks(std::integral_constant<int, 4>{});
    blocks(std::integral_constant<int, 1>{});
  }
}

template <int O, int R, bool B, bool H>
void weighted_rows(const Weighted<H>& k, long row, int rows, float* mixed) {
  over_blocks<O, R, B ? 1 : 8>(k, row, rows, mixed,
                               [&](auto block, float* sums) { add_block<B>(k, block, sums); });
}

template <bool H>
struct WeightedForward {
  Weighted<H> in;
  const Rows<H>*raw, *y;  // of each output; null where it is not wanted
};

template <int O, int R, bool B, bool H>
void weighted_forward_rows(const WeightedForward<H>& k, long row, int rows, float* mixed) {
  const int d = k.in.s.width, stride = k.in.s.stride(), outputs = k.in.outputs;
  weighted_rows<O, R, B>(k.in, row, rows, mixed);
  for (long t = row; t < row + rows; ++t)
    for (int o = 0; o < outputs; ++o) {
      const float *g = mixed + ((t - row) * outputs + o) * stride, *gain = k.in.gain[o];
      Vec square = {};
      for (int j = 0; j < d; j += kLanes) {
        const Vec value = load(g + j);
        square += value * value;
        if (k.raw[o]) k.raw[o].store(t * d + j, value);
      }
      if (!gain) continue;
      const float rho = 1 / std::sqrt(sum(square) / d + k.in.s.eps);
      k.in.rho[t * outputs + o] = rho;
      for (int j = 0; j < d; j += kLanes)
        k.y[o].store(t * d + j, load(gain + j) * (load(g + j) * rho));
    }
}

template <bool H>
struct WeightedBackward {
  Weighted<H> in;
  const Rows<H>*draw, *dy;   // of each output; null for zero
  const Rows<H>*later, *df;  // of each entry; `later` may be null for zero
  float* dweights;           // as the weights, or null
  bool db;                   // whether b has a gradient
  const float* zeros;        // a row
};

// From the gradients of the sums, in `mixed`, to those of a block of entries and of their weights.
template <bool B, int O, int R, int P, bool H>
void spread_block(const WeightedBackward<H>& k, Block<O, R, P> at, const float* mixed,
                  float* sum_b) {
  const Weighted<H>& in = k.in;
  const int n = in.s.entries, d = in.s.width, size = d / in.groups;
  const int stride = in.s.stride(), step = in.outputs * stride;
  Rows<H> before[P];  // what the gradients of this block are added to
  long row_of_before[P];
  for (int p = 0; p < P; ++p) {
    before[p] = at.output ? k.df[at.entry + p] : k.later[at.entry + p];
    row_of_before[p] = before[p] ? d : 0;
    if (!before[p]) before[p] = {const_cast<float*>(k.zeros), false};
  }
  for (int group = 0; group < in.groups; ++group) {
    float weight[P][R][O];
    read_weights(in, at, group, weight);
    Vec dot[P][R][O] = {};
    for (int j = group * size; j < (group + 1) * size; j += kLanes) {
      Vec g[R][O];
      for (int r = 0; r < R; ++r)
        for (int o = 0; o < O; ++o) g[r][o] = load(mixed + r * step + o * stride + j);
      for (int p = 0; p < P; ++p) {
        const int i = at.entry + p;
        Vec x[R], total[R];
        for (int r = 0; r < R; ++r) {
          x[r] = in.f[i].load((at.row + r) * d + j);
          total[r] = before[p].load((at.row + r) * row_of_before[p] + j);
        }
        for (int o = 0; o < O; ++o) {
          const long at_b = ((at.output + o) * n + i) * long(d) + j;
          const Vec shared = B ? load(in.b + at_b) : Vec{};
          Vec of_b = {};
          for (int r = 0; r < R; ++r) {
            total[r] += (shared + weight[p][r][o]) * g[r][o];
            dot[p][r][o] += g[r][o] * x[r];
            of_b += g[r][o] * x[r];
          }
          if (B && k.db) store(sum_b + at_b, load(sum_b + at_b) + of_b);
        }
        for (int r = 0; r < R; ++r) k.df[i].store((at.row + r) * d + j, total[r]);
      }
    }
    for (int p = 0; k.dweights && p < P; ++p)
      for (int r = 0; r < R; ++r)
        for (int o = 0; o < O; ++o) {
          const long to = in.weight_at(at.row + r, at.output + o, at.entry + p) + group;
          k.dweights[to] = sum(dot[p][r][o]);
        }
  }
}

template <int O, int R, bool B, bool H>
void weighted_backward_rows(const WeightedBackward<H>& k, long row, int rows, float* mixed,
                            Sums sums) {
  const Weighted<H>& in = k.in;
  const int d = in.s.width, stride = in.s.stride(), outputs = in.outputs;
  if (std::any_of(k.dy, k.dy + outputs, [](const Rows<H>& one) { return bool(one); }))
    weighted_rows<O, R, B>(in, row, rows, mixed);
  for (long t = row; t < row + rows; ++t)
    for (int o = 0; o < outputs; ++o)
      norm_backward(in.s, mixed + ((t - row) * outputs + o) * stride, in.gain[o],
                    k.dy[o] ? in.rho[t * outputs + o] : 0, k.dy[o], k.draw[o], t * d,
                    sums.gain + o * d);
  over_blocks<O, R, B ? 1 : 4>(in, row, rows, mixed, [&](auto block, const float* gradients) {
    spread_block<B>(k, block, gradients, sums.b);
  });
}

template <int O, bool B, bool H>
void weighted_forward(const WeightedForward<H>& k, int threads) {
  over_rows(
      k.in.s, k.in.outputs, threads,
      [&](long row, float* mixed, float*, int) {
        weighted_forward_rows<O, B ? kTile : 1, B>(k, row, kTile, mixed);
      },
      [&](long row, float* mixed, float*, int) {
        weighted_forward_rows<O, 1, B>(k, row, 1, mixed);
      });
}

template <int O, bool B, bool H>
void weighted_backward(WeightedBackward<H> k, float* db, float* const* dgain, int threads) {
  const int d = k.in.s.width, outputs = k.in.outputs;
  const long size_b = db ? long(outputs) * k.in.s.entries * d : 0;
  const long size = size_b + long(outputs) * d;
  std::vector<float> partial(threads * size + d);
  k.zeros = partial.data() + threads * size;
  k.db = db;
  const auto sums = [&](int thread) {
    float* mine = partial.data() + thread * size;
    return Sums{mine, nullptr, mine + size_b};
  };
  over_rows(
      k.in.s, outputs, threads,
      [&](long row, float* mixed, float*, int thread) {
        weighted_backward_rows<O, B ? kTile : 1, B>(k, row, kTile, mixed, sums(thread));
      },
      [&](long row, float* mixed, float*, int thread) {
        weighted_backward_rows<O, 1, B>(k, row, 1, mixed, sums(thread));
      });
  total_of(sums(0).b, size, threads, size_b, db);
  for (int o = 0; o < outputs; ++o)
    if (dgain[o]) total_of(sums(0).gain + o * d, size, threads, d, dgain[o]);
}

// Calls work(O).
template <typename Work>
void with_mixtures(int outputs, Work work) {
  switch (outputs) {
    case 1: return work(std::integral_constant<int, 1>{});
    case 2: return work(std::integral_constant<int, 2>{});
    default: return work(std::integral_constant<int, 3>{});
  }
}

// Calls work(O, B).
template <typename Work>
void with_outputs(int outputs, bool b, Work work) {
  const auto unshared = [&](auto o) { work(o, std::false_type{}); };
  if (b) return work(std::integral_constant<int, 1>{}, std::true_type{});
  switch (outputs) {
    case 1: return unshared(std::integral_constant<int, 1>{});
    case 2: return unshared(std::integral_constant<int, 2>{});
    case 3: return unshared(std::integral_constant<int, 3>{});
    case 4: return unshared(std::integral_constant<int, 4>{});
    case 5: return unshared(std::integral_constant<int, 5>{});
  }
}

// Products of rows with a few vectors (dca.layers.row_products), kGroup rows at a time. Forward
// the vectors are side by side in lanes, so that nothing is summed across lanes; going back, features.
constexpr int kGroup = kLanes / 2;

template <bool H>
struct Products {
  long rows;
  int width, vectors, heads;
  Rows<H> x;
  const float* w;                 // [vectors, width]
  float *products, *square;       // [vectors, heads, rows], [rows]
  const float *dproducts, *dsquare;
  Rows<H> dx;

  int padded() const { return (vectors + kLanes - 1) / kLanes * kLanes; }
  long product_at(long row, int vector, int head) const {
    return (long(vector) * heads + head) * rows + row;
  }
};

// w turned to [width, padded vectors].
template <bool H>
std::vector<float> turned(const Products<H>& k) {
  std::vector<float> found(long(k.width) * k.padded());
  for (int r = 0; r < k.vectors; ++r)
    for (int j = 0; j < k.width; ++j) found[long(j) * k.padded() + r] = k.w[long(r) * k.width + j];
  return found;
}

// Products of R rows, `stride` apart, with V * kLanes vectors from `first` on.
template <int R, int V, bool H>
void product_block(const Products<H>& k, const float* turned, int first, int head, long row,
                   const float* x, long stride) {
  const int size = k.width / k.heads;
  Vec total[R][V] = {};
  for (int j = head * size; j < (head + 1) * size; ++j) {
    const float* w = turned + long(j) * k.padded() + first;
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) total[r][v] += load(w + v * kLanes) * x[r * stride + j];
  }
  const int count = std::min(V * kLanes, k.vectors - first);
  for (int i = 0; i < count; ++i)
    for (int r = 0; r < R; ++r)
      k.products[k.product_at(row + r, first + i, head)] = total[r][i / kLanes][i % kLanes];
}

// Squares and products of R rows; `scratch` is for rows of bfloat16.
template <int R, bool H>
void product_rows(const Products<H>& k, const float* turned, long row, float* scratch) {
  const int d = k.width;
  for (int r = 0; r < R; ++r) {
    Vec square = {};
    for (int j = 0; j < d; j += kLanes) {
      const Vec value = k.x.load((row + r) * d + j);
      if (H) store(scratch + r * d + j, value);
      square += value * value;
    }
    k.square[row + r] = sum(square) / d;
  }
  const float* x = H ? scratch : static_cast<const float*>(k.x.data) + row * d;
  for (int head = 0; head < k.heads; ++head)
    for (int first = 0; first < k.vectors; first += 2 * kLanes)
      k.vectors - first > kLanes ? product_block<R, 2>(k, turned, first, head, row, x, d)
                                 : product_block<R, 1>(k, turned, first, head, row, x, d);
}

// Adds to the gradient of R rows, in dx, and to that of w.
template <int R, bool H>
void product_rows_backward(const Products<H>& k, long row, float* g, float* dw) {
  const int d = k.width, size = d / k.heads;
  float factor[R];
  for (int r = 0; r < R; ++r) factor[r] = k.dsquare ? 2 * k.dsquare[row + r] / d : 0;
  for (int head = 0; head < k.heads; ++head) {
    for (int i = 0; i < k.vectors; ++i)
      for (int r = 0; r < R; ++r)
        g[i * R + r] = k.dproducts ? k.dproducts[k.product_at(row + r, i, head)] : 0;
    for (int j = head * size; j < (head + 1) * size; j += kLanes) {
      Vec x[R], total[R];
      for (int r = 0; r < R; ++r) {
        x[r] = k.x.load((row + r) * d + j);
        total[r] = k.dx.load((row + r) * d + j) + factor[r] * x[r];
      }
      for (int i = 0; k.dproducts && i < k.vectors; ++i) {
        const Vec w = load(k.w + long(i) * d + j);
        Vec of_w = load(dw + long(i) * d + j);
        for (int r = 0; r < R; ++r) {
          total[r] += g[i * R + r] * w;
          of_w += g[i * R + r] * x[r];
        }
        store(dw + long(i) * d + j, of_w);
      }
      for (int r = 0; r < R; ++r) k.dx.store((row + r) * d + j, total[r]);
    }
  }
}

// y = x w^T, or gelu(x w^T), for R rows and one row of w.
template <int R>
void dot_rows(int width, bool gelu, const float* x, const float* w, long outputs, float* y) {
  Vec total[R] = {};
  for (int j = 0; j < width; j += kLanes)
    for (int r = 0; r < R; ++r) total[r] += load(x + long(r) * width + j) * load(w + j);
  for (int r = 0; r < R; ++r) {
    const float value = sum(total[r]);
    y[r * outputs] = gelu ? value * 0.5f * (1 + std::erf(value * float(M_SQRT1_2))) : value;
  }
}

// Divides matrices m [n, n], of kLanes tokens side by side, by their sums over the first or the
// second axis; the factors are 1 / sums, [n].
void divide_by_sums(int n, bool first, Vec* m, Vec* factors) {
  for (int a = 0; a < n; ++a) {
    const auto at = [&](int b) { return first ? b * n + a : a * n + b; };
    Vec total = {};
    for (int b = 0; b < n; ++b) total += m[at(b)];
    factors[a] = 1 / total;
    for (int b = 0; b < n; ++b) m[at(b)] *= factors[a];
  }
}

// Turns the gradient g of the quotients m into that of what was divided.
void divide_backward(int n, bool first, const Vec* m, const Vec* factors, Vec* g) {
  for (int a = 0; a < n; ++a) {
    const auto at = [&](int b) { return first ? b * n + a : a * n + b; };
    Vec along = {};
    for (int b = 0; b < n; ++b) along += g[at(b)] * m[at(b)];
    for (int b = 0; b < n; ++b) g[at(b)] = (g[at(b)] - along) * factors[a];
  }
}

void load_matrices(int n, long tokens, const float* from, Vec* m) {
  for (int i = 0; i < n * n; ++i) m[i] = load(from + i * tokens);
}

void store_matrices(int n, long tokens, const Vec* m, float* to) {
  for (int i = 0; i < n * n; ++i) store(to + i * tokens, m[i]);
}

}  // namespace

extern "C" {

// y [rows, outputs] = x [rows, width] w^T, with w [outputs, width] read once, at memory speed.
void linear(long rows, int width, long outputs, int gelu, const float* x, const float* w, float* y,
            int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long o = 0; o < outputs; ++o) {
    const float* one = w + o * width;
    long r = 0;
    for (; r + 4 <= rows; r += 4)
      dot_rows<4>(width, gelu, x + r * width, one, outputs, y + r * outputs + o);
    for (; r < rows; ++r)
      dot_rows<1>(width, gelu, x + r * width, one, outputs, y + r * outputs + o);
  }
}

// Tensors are dense. f, y, dy, later and df are arrays of pointers, one per entry or output. half has
// a 1 for what is bfloat16, of each entry, then of skip and of y; gradients have their tensors' type.
// w is null for mixtures without scores; dskip and items of dy and later are null for zero.

void mix_forward(long rows, int entries, int width, int outputs, int norm, float eps, int threads,
                 const int* half, void* const* f, const float* b, const float* w, const float* gain,
                 void* skip, void* const* y, float* score, float* scale, float* rho) {
  with_types(half, entries, [&](auto any) {
    constexpr bool H = decltype(any)::value;
    const auto rows_f = rows_of<H>(f, half, entries), rows_y = rows_of<H>(y, half, entries, outputs);
    const Forward<H> k{{rows, entries, width, norm != 0, eps}, rows_f.data(), b, w, gain,
                       {skip, half[entries] != 0}, rows_y.data(), {score, scale, rho}};
    with_mixtures(outputs, [&](auto o) { forward<decltype(o)::value>(k, threads); });
  });
}

void mix_backward(long rows, int entries, int width, int outputs, int norm, float eps, int threads,
                  const int* half, void* const* f, const float* b, const float* w,
                  const float* gain, float* score, float* scale, float* rho, void* dskip,
                  void* const* dy, void* const* later, void* const* df, float* db, float* dw,
                  float* dgain) {
  with_types(half, entries, [&](auto any) {
    constexpr bool H = decltype(any)::value;
    const auto rows_f = rows_of<H>(f, half, entries), rows_later = rows_of<H>(later, half, entries);
    const auto rows_df = rows_of<H>(df, half, entries);
    const auto rows_dy = rows_of<H>(dy, half, entries, outputs);
    const Backward<H> k{{rows, entries, width, norm != 0, eps}, rows_f.data(), b, w, gain,
                        {score, scale, rho}, {dskip, half[entries] != 0}, rows_dy.data(),
                        rows_later.data(), rows_df.data()};
    with_mixtures(outputs, [&](auto o) {
      backward<decltype(o)::value>(k, db, dw, dgain, threads);
    });
  });
}

// As above, for sums whose weights are given: null are missing weights, b and gains, and raw or y of
// an output where it is not wanted; half has the type of the raw sums, then that of y.

void sums_forward(long rows, int entries, int width, int outputs, int groups, float eps,
                  int threads, const int* half, void* const* f, const float* weights, const float* b,
                  const float* const* gain, float* rho, void* const* raw, void* const* y) {
  with_types(half, entries, [&](auto any) {
    constexpr bool H = decltype(any)::value;
    const auto rows_f = rows_of<H>(f, half, entries), rows_y = rows_of<H>(y, half, entries, outputs);
    const auto rows_raw = rows_of<H>(raw, half - 1, entries, outputs);
    const WeightedForward<H> k{
        {{rows, entries, width, false, eps}, outputs, groups, rows_f.data(), weights, b, gain, rho},
        rows_raw.data(), rows_y.data()};
    with_outputs(outputs, b, [&](auto o, auto shared) {
      weighted_forward<decltype(o)::value, decltype(shared)::value>(k, threads);
    });
  });
}

void sums_backward(long rows, int entries, int width, int outputs, int groups, float eps,
                   int threads, const int* half, void* const* f, const float* weights, const float* b,
                   const float* const* gain, float* rho, void* const* draw, void* const* dy,
                   void* const* later, void* const* df, float* dweights, float* db,
                   float* const* dgain) {
  with_types(half, entries, [&](auto any) {
    constexpr bool H = decltype(any)::value;
    const auto rows_f = rows_of<H>(f, half, entries), rows_later = rows_of<H>(later, half, entries);
    const auto rows_df = rows_of<H>(df, half, entries);
    const auto rows_dy = rows_of<H>(dy, half, entries, outputs);
    const auto rows_draw = rows_of<H>(draw, half - 1, entries, outputs);
    const WeightedBackward<H> k{
        {{rows, entries, width, false, eps}, outputs, groups, rows_f.data(), weights, b, gain, rho},
        rows_draw.data(), rows_dy.data(), rows_later.data(), rows_df.data(), dweights, false,
        nullptr};
    with_outputs(outputs, b, [&](auto o, auto shared) {
      weighted_backward<decltype(o)::value, decltype(shared)::value>(k, db, dgain, threads);
    });
  });
}

// products [vectors, heads, rows] of rows x with w [vectors, width], of adjacent features head by
// head, and the mean square of each row. half has the type of x.
void row_products(long rows, int width, int vectors, int heads, int threads, const int* half,
                  void* x, const float* w, float* products, float* square) {
  with_types(half, -1, [&](auto any) {
    constexpr bool H = decltype(any)::value;
    Products<H> k{rows, width, vectors, heads, {x, H}, w, products, square};
    const std::vector<float> columns = turned(k);
    over_tiles<kGroup>(
        rows, H ? long(kGroup) * width : 0, threads,
        [&](long row, float* mine, int) { product_rows<kGroup>(k, columns.data(), row, mine); },
        [&](long row, float* mine, int) { product_rows<1>(k, columns.data(), row, mine); });
  });
}

// Adds the gradient of x to dx and writes that of w, where the products have one; null is zero.
void add_row_products_gradient(long rows, int width, int vectors, int heads, int threads,
                               const int* half, void* x, const float* w, const float* dproducts,
                               const float* dsquare, void* dx, float* dw) {
  with_types(half, -1, [&](auto any) {
    constexpr bool H = decltype(any)::value;
    Products<H> k{rows, width, vectors, heads, {x, H}, w, nullptr, nullptr, dproducts, dsquare,
                  {dx, H}};
    const long size = long(vectors) * width;
    std::vector<float> partial(threads * size);
    over_tiles<kGroup>(
        rows, long(kGroup) * vectors, threads,
        [&](long row, float* g, int thread) {
          product_rows_backward<kGroup>(k, row, g, partial.data() + thread * size);
        },
        [&](long row, float* g, int thread) {
          product_rows_backward<1>(k, row, g, partial.data() + thread * size);
        });
    if (dw) total_of(partial.data(), size, threads, size, dw);
  });
}

// Matrices [n, n, tokens] divided in turn by their sums over the first and the second axis, `steps`
// times in all; tokens is a multiple of the lanes.
void sinkhorn(long tokens, int n, int steps, const float* from, float* to, int threads) {
#pragma omp parallel num_threads(threads)
  {
    std::vector<Vec> m(n * n), factors(n);
#pragma omp for schedule(static)
    for (long t = 0; t < tokens; t += kLanes) {
      load_matrices(n, tokens, from + t, m.data());
      for (int step = 0; step < steps; ++step)
        divide_by_sums(n, step % 2 == 0, m.data(), factors.data());
      store_matrices(n, tokens, m.data(), to + t);
    }
  }
}

// The gradient of `from`, given that of the result; the steps are made again and kept in the cache.
void sinkhorn_backward(long tokens, int n, int steps, const float* from, const float* dto,
                       float* dfrom, int threads) {
#pragma omp parallel num_threads(threads)
  {
    std::vector<Vec> m((steps + 1) * n * n), factors(steps * n), g(n * n);
#pragma omp for schedule(static)
    for (long t = 0; t < tokens; t += kLanes) {
      load_matrices(n, tokens, from + t, m.data());
      for (int step = 0; step < steps; ++step) {
        Vec* next = m.data() + (step + 1) * n * n;
        std::copy_n(next - n * n, n * n, next);
        divide_by_sums(n, step % 2 == 0, next, factors.data() + step * n);
      }
      load_matrices(n, tokens, dto + t, g.data());
      for (int step = steps - 1; step >= 0; --step)
        divide_backward(n, step % 2 == 0, m.data() + (step + 1) * n * n, factors.data() + step * n,
                        g.data());
      store_matrices(n, tokens, g.data(), dfrom + t);
    }
  }
}
}
