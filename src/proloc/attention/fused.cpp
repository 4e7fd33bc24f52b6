// Dialled attention in one pass, forward and backward, for CPUs (ours; the tiling follows FlashAttention).
//
// Vector lanes are queries: a tile of scores is kept as [key][query], so that maxima, sums and masks need no horizontal
// work, keys and values are read in their natural order, and whether a key is a sink is one scalar per row. Scores are
// in powers of two. See fused.py for the formulas; every function below works on one query tile of one head.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int W = 16, NR = 4;  // floats in a vector; vectors in one micro-tile
#elif defined(__AVX2__)
constexpr int W = 8, NR = 2;
#else
constexpr int W = 4, NR = 2;
#endif
constexpr int LANES = 64, C = LANES / W;          // queries of a tile, and its vectors
constexpr int STRIP = 16, STRIPS = 4;             // keys of a strip; strips of a key tile
constexpr int ROWS = STRIP * STRIPS;
constexpr int FEW = 4;                            // so few queries are answered one by one
constexpr float NEVER = -1e30f;                   // the score of a hidden key

typedef float Vec __attribute__((vector_size(W * 4)));
typedef int32_t Int __attribute__((vector_size(W * 4)));
typedef float Loose __attribute__((vector_size(W * 4), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const Loose*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Loose*>(p) = v; }
inline Int ints(const int32_t* p) { Int v; std::memcpy(&v, p, sizeof v); return v; }
inline Vec fill(float x) { return Vec{} + x; }
inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

// 2^x to 1e-7 for x <= 127; NaN stays NaN.
inline Vec power_of_two(Vec x) {
  x = x < -126.0f ? fill(-126.0f) : x;
  const Vec shifted = x + 12582912.0f;  // 1.5 * 2^23: the integer part lands in the low bits
  const Vec f = x - (shifted - 12582912.0f);
  Vec p = fill(0.0013276452f);
  p = p * f + 0.0096755412f;
  p = p * f + 0.0555071334f;
  p = p * f + 0.2402211973f;
  p = p * f + 0.6931469670f;
  p = p * f + 1.0000000717f;
  Int bits, exponent;
  std::memcpy(&bits, &p, sizeof bits);
  std::memcpy(&exponent, &shifted, sizeof exponent);
  bits += exponent << 23;
  std::memcpy(&p, &bits, sizeof p);
  return p;
}

// c[i][n] (+)= sum_k a[i * ai + k * ak] * b[k * bk + n * W]: the one matrix product behind all others.
template <int M, int N, bool ADD>
inline void micro(long depth, const float* a, long ai, long ak, const float* b, long bk, float* c, long ci) {
  Vec sum[M][N];
#pragma GCC unroll 8
  for (int i = 0; i < M; i++)
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) sum[i][n] = Vec{};
  for (long k = 0; k < depth; k++) {
    Vec row[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) row[n] = load(b + n * W);
#pragma GCC unroll 8
    for (int i = 0; i < M; i++) {
      const Vec x = fill(a[i * ai]);
#pragma GCC unroll 4
      for (int n = 0; n < N; n++) sum[i][n] += x * row[n];
    }
    a += ak;
    b += bk;
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; i++)
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) {  // added at the end: sums of sums round less than one long sum
      float* place = c + i * ci + n * W;
      store(place, ADD ? load(place) + sum[i][n] : sum[i][n]);
    }
}

template <int N, bool ADD>
void panel(int m, long depth, const float* a, long ai, long ak, const float* b, long bk, float* c, long ci) {
  constexpr int M = N <= 2 && NR == 4 ? 8 : 4;
  int i = 0;
  for (; i + M <= m; i += M) micro<M, N, ADD>(depth, a + i * ai, ai, ak, b, bk, c + i * ci, ci);
  for (; i + 2 <= m; i += 2) micro<2, N, ADD>(depth, a + i * ai, ai, ak, b, bk, c + i * ci, ci);
  if (i < m) micro<1, N, ADD>(depth, a + i * ai, ai, ak, b, bk, c + i * ci, ci);
}

template <bool ADD>
void product(int m, int vectors, long depth, const float* a, long ai, long ak, const float* b, long bk, float* c,
             long ci) {
  for (int n = 0; n < vectors; n += NR, b += NR * W, c += NR * W) switch (std::min(NR, vectors - n)) {
      case 1: panel<1, ADD>(m, depth, a, ai, ak, b, bk, c, ci); break;
      case 2: panel<2, ADD>(m, depth, a, ai, ak, b, bk, c, ci); break;
      case 3: panel<(NR > 2 ? 3 : 1), ADD>(m, depth, a, ai, ak, b, bk, c, ci); break;
      case 4: panel<(NR > 2 ? 4 : 1), ADD>(m, depth, a, ai, ak, b, bk, c, ci); break;
    }
}

struct Scratch {  // aligned floats that grow and are never shared between threads
  float* data = nullptr;
  size_t size = 0;
  float* get(size_t wanted) {
    if (wanted > size) {
      std::free(data);
      data = static_cast<float*>(std::aligned_alloc(64, (wanted * 4 + 63) / 64 * 64));
      size = wanted;
    }
    return data;
  }
  ~Scratch() { std::free(data); }
};

struct Strided {  // [batch, head, row, head_dim], head_dim contiguous, strides in elements
  void* data;
  int64_t batch, head, row;
};

}  // namespace

extern "C" struct Problem {
  Strided query, key, value, output, grad_output, grad_query, grad_key, grad_value;
  const int32_t *visible_start, *home_start;  // [batch, query]
  const uint8_t* sinks;                        // [batch, key]
  float *lse, *fidelity, *sink_mass, *entropy; // [batch, head, query]; all but lse may be null
  const float* grad_fidelity;                  // the same, may be null
  int64_t batch, heads, kv_heads, queries, keys, head_dim, query_offset, bfloat16, threads;
  double scaling, retain;
};

namespace {

float read(const Problem& p, const void* data, int64_t i) {
  if (!p.bfloat16) return static_cast<const float*>(data)[i];
  const uint32_t bits = uint32_t(static_cast<const uint16_t*>(data)[i]) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

void write(const Problem& p, void* data, int64_t i, float x) {
  if (!p.bfloat16) {
    static_cast<float*>(data)[i] = x;
    return;
  }
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const bool nan = x != x;
  static_cast<uint16_t*>(data)[i] = nan ? 0x7FC0 : uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

int64_t at(const Strided& t, int64_t b, int64_t h, int64_t row) { return b * t.batch + h * t.head + row * t.row; }

// One row as floats, zeros after head_dim.
void row_of(const Problem& p, const Strided& t, int64_t b, int64_t h, int64_t row, int width, float* out) {
  const int64_t offset = at(t, b, h, row);
  if (p.bfloat16)
    for (int d = 0; d < p.head_dim; d++) out[d] = read(p, t.data, offset + d);
  else
    std::memcpy(out, static_cast<const float*>(t.data) + offset, p.head_dim * 4);
  for (int d = p.head_dim; d < width; d++) out[d] = 0.0f;
}

// The tensor's row from floats times `factor`.
void write_row(const Problem& p, const Strided& t, int64_t offset, const float* row, float factor) {
  if (p.bfloat16)
    for (int d = 0; d < p.head_dim; d++) write(p, t.data, offset + d, factor * row[d]);
  else
    for (int d = 0; d < p.head_dim; d++) static_cast<float*>(t.data)[offset + d] = factor * row[d];
}

// Rows [from, to) of one head as floats with rows of `width`; the tensor itself where it already has that form.
const float* rows(const Problem& p, const Strided& t, int64_t b, int64_t h, int64_t from, int64_t to, int width,
                  Scratch& scratch) {
  if (!p.bfloat16 && t.row == width && p.head_dim == width)
    return static_cast<const float*>(t.data) + at(t, b, h, 0);
  float* copy = scratch.get(to * width);
  for (int64_t r = from; r < to; r++) row_of(p, t, b, h, r, width, copy + r * width);
  return copy;
}

// out[j][i] = factor * in[i][j] for m rows of n, both multiples of 4.
void transpose(const float* in, int m, int n, float factor, float* out) {
  typedef float Four __attribute__((vector_size(16)));
  typedef int32_t Picks __attribute__((vector_size(16)));
#if defined(__clang__)
#define PICK(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define PICK(a, b, i, j, k, l) __builtin_shuffle(a, b, Picks{i, j, k, l})
#endif
  for (int i = 0; i < m; i += 4)
    for (int j = 0; j < n; j += 4) {
      Four r[4];
      for (int k = 0; k < 4; k++) std::memcpy(&r[k], in + (i + k) * n + j, 16);
      const Four a = PICK(r[0], r[1], 0, 4, 1, 5), b = PICK(r[0], r[1], 2, 6, 3, 7);
      const Four c = PICK(r[2], r[3], 0, 4, 1, 5), d = PICK(r[2], r[3], 2, 6, 3, 7);
      r[0] = PICK(a, c, 0, 1, 4, 5), r[1] = PICK(a, c, 2, 3, 6, 7);
      r[2] = PICK(b, d, 0, 1, 4, 5), r[3] = PICK(b, d, 2, 3, 6, 7);
      for (int k = 0; k < 4; k++) {
        r[k] *= factor;
        std::memcpy(out + (j + k) * m + i, &r[k], 16);
      }
    }
#undef PICK
}

struct Bound {  // one position per lane, with its range in every vector of lanes
  alignas(64) int32_t lane[LANES];
  int32_t min[C], max[C];
  void close(int lanes) {
    for (int c = 0; c < C; c++) {
      if (c * W >= lanes) {  // nobody there: sees nothing
        min[c] = INT32_MAX, max[c] = -1;
        continue;
      }
      min[c] = *std::min_element(lane + c * W, lane + c * W + W);
      max[c] = *std::max_element(lane + c * W, lane + c * W + W);
    }
  }
  int32_t least() const { return *std::min_element(min, min + C); }
  int32_t most() const { return *std::max_element(max, max + C); }
};

// ALL: every visible key, away ones scaled. NEAR: home keys. SINKS: gathered sinks before the block. FAR: away keys.
enum Phase { ALL, NEAR, SINKS, FAR };

struct Tile {
  Bound visible, home, before_home, position;
  int64_t first;  // query index
  int lanes;

  Tile(const Problem& p, int64_t b, int64_t first, int64_t most = LANES)
      : first(first), lanes(std::min(most, p.queries - first)) {
    for (int lane = 0; lane < LANES; lane++) {  // unused lanes repeat the last query, with zeros for its vectors
      const int64_t q = first + std::min(lane, lanes - 1);
      // Bounds keep a range that breaks its promise from becoming a read outside the keys.
      const int32_t own = p.query_offset + q, seen = std::max(0, std::min(p.visible_start[b * p.queries + q], own));
      visible.lane[lane] = seen;
      home.lane[lane] = std::max(seen, std::min(p.home_start[b * p.queries + q], own));
      before_home.lane[lane] = home.lane[lane] - 1;
      position.lane[lane] = own;
    }
    for (Bound* bound : {&visible, &home, &before_home, &position}) bound->close(lanes);
  }
  const Bound& low(Phase phase) const { return phase == NEAR ? home : visible; }
  const Bound& high(Phase phase) const { return phase == ALL || phase == NEAR ? position : before_home; }
};

struct Keys {  // rows of keys: contiguous from `first`, or gathered, with their positions in `at`
  const float *key, *value;
  float *grad_key, *grad_value;
  int32_t first, count;
  const int32_t* at;
  const uint8_t* sinks;
  int32_t position(int row) const { return at ? at[row] : first + row; }
};

enum Kind { HOME, AWAY, MIXED };

struct Strip {  // rows [row, row + count) of a key tile, and the vectors [begin, end) of lanes that see any of them
  int row, count, begin, end;
  Kind kind;
};

// The strips of rows [from, ...) of `keys`; returns how many, `taken` = how many rows they cover, unseen ones included.
int plan(const Tile& tile, const Keys& keys, Phase phase, int from, int align, Strip* strips, int& taken) {
  const Bound &low = tile.low(phase), &high = tile.high(phase);
  int found = 0, row = from;
  const int stop = std::min(from + ROWS, keys.count);
  while (row < stop) {
    const int first = keys.position(row);
    const int to_edge = keys.at ? STRIP : STRIP - ((first - align) % STRIP + STRIP) % STRIP;
    const int count = std::min(to_edge, stop - row), last = keys.position(row + count - 1);
    int begin = C, end = 0;
    for (int c = 0; c < C; c++)
      if (high.max[c] >= first && low.min[c] <= last) begin = std::min(begin, c), end = c + 1;
    if (begin < end) {
      bool seen = true, home = true, away = true, sink = false;
      for (int c = begin; c < end; c++) {
        seen &= high.min[c] >= last && low.max[c] <= first;
        home &= tile.home.max[c] <= first;
        away &= tile.home.min[c] > last;
      }
      for (int r = 0; r < count && !sink; r++) sink = keys.sinks[keys.position(row + r)];
      const Kind kind = !seen || sink ? MIXED : home ? HOME : away ? AWAY : MIXED;
      strips[found++] = {row - from, count, begin, end, kind};
    }
    row += count;
  }
  taken = row - from;
  return found;
}

// Neighbouring strips seen by the same lanes, for one matrix product.
template <class F>
void merged(const Strip* strips, int count, F work) {
  for (int i = 0; i < count;) {
    int j = i + 1;
    while (j < count && strips[j].begin == strips[i].begin && strips[j].end == strips[i].end &&
           strips[j].row == strips[j - 1].row + strips[j - 1].count)
      j++;
    work(strips[i].row, strips[j - 1].row + strips[j - 1].count - strips[i].row, strips[i].begin * W,
         strips[i].end - strips[i].begin);
    i = j;
  }
}

struct Row {  // what one key is to one vector of lanes
  Int visible, home;
};

inline Row classify(const Tile& tile, const Keys& keys, Phase phase, int row, int c) {
  const int32_t position = keys.position(row);
  const bool sink = keys.sinks[position];
  const Int j = Int{} + position;
  Row r{(ints(tile.low(phase).lane + c * W) <= j) & (ints(tile.high(phase).lane + c * W) >= j), Int{}};
  if (phase == FAR) {
    if (sink) r.visible = Int{};
  } else {
    r.home = phase != ALL || sink ? ~Int{} : ints(tile.home.lane + c * W) <= j;
  }
  return r;
}

// retain = 2^exponent * factor: log2(retain) itself would round and move every away weight by up to 5e-7.
struct Retained {
  float exponent = 0.0f, factor = 1.0f, log_factor = 0.0f;
  Retained() = default;
  explicit Retained(double retain) {
    int e;
    factor = 2.0 * std::frexp(retain, &e);
    exponent = e - 1;
    log_factor = std::log2(factor);
  }
};

struct State {  // running softmax of one query tile
  Vec max[C], home[C], away[C], sink[C], moment[C];  // moment = sum of p * log2 p
  State() {
    for (int c = 0; c < C; c++) max[c] = fill(NEVER), home[c] = away[c] = sink[c] = moment[c] = Vec{};
  }
};

struct Buffers {
  Scratch key, value, gathered, grad_key, grad_value, tile;
  alignas(64) float scores[ROWS * LANES], other[ROWS * LANES];
};

template <bool STATISTICS>
void soften(const Tile& tile, const Keys& keys, Phase phase, int from, const Strip* strips, int count,
            const Retained& retained, float* scores, State& s, float* out, int width) {
  bool moved[C];
  Vec factor[C];
  for (int c = 0; c < C; c++) {
    Vec top = s.max[c];
    for (const Strip* t = strips; t < strips + count; t++) {
      if (c < t->begin || c >= t->end) continue;
      float* x = scores + t->row * LANES + c * W;
      if (t->kind != MIXED) {
        Vec strip_top = load(x);
        for (int r = 1; r < t->count; r++) strip_top = larger(load(x + r * LANES), strip_top);
        top = larger(t->kind == AWAY ? strip_top + retained.exponent : strip_top, top);
        continue;
      }
      for (int r = 0; r < t->count; r++) {
        const Row row = classify(tile, keys, phase, from + t->row + r, c);
        Vec v = load(x + r * LANES);
        v = row.visible ? (row.home ? v : v + retained.exponent) : fill(NEVER);
        store(x + r * LANES, v);
        top = larger(v, top);
      }
    }
    const Int changed = s.max[c] != top;
    factor[c] = changed ? power_of_two(s.max[c] - top) : fill(1.0f);  // a lane must not notice that another one moved
    moved[c] = false;
    for (int i = 0; i < W; i++) moved[c] |= changed[i] != 0;
    if (moved[c]) {
      if (STATISTICS)
        s.moment[c] = (s.moment[c] + (s.home[c] + s.away[c]) * larger(s.max[c] - top, fill(NEVER))) * factor[c];
      s.home[c] *= factor[c], s.away[c] *= factor[c], s.sink[c] *= factor[c];
      s.max[c] = top;
    }
    Vec home{}, away{}, sink{}, moment{};
    for (const Strip* t = strips; t < strips + count; t++) {
      if (c < t->begin || c >= t->end) continue;
      float* x = scores + t->row * LANES + c * W;
      if (t->kind != MIXED) {
        const Retained kept = t->kind == AWAY ? retained : Retained();
        const Vec shift = top - kept.exponent;
        Vec sum{};
        for (int r = 0; r < t->count; r++) {
          const Vec v = load(x + r * LANES) - shift, w = power_of_two(v) * kept.factor;
          store(x + r * LANES, w);
          sum += w;
          if (STATISTICS) moment += w * (v + kept.log_factor);
        }
        (t->kind == AWAY ? away : home) += sum;
        continue;
      }
      for (int r = 0; r < t->count; r++) {
        const Row row = classify(tile, keys, phase, from + t->row + r, c);
        const Vec v = load(x + r * LANES) - top, factor = row.home ? fill(1.0f) : fill(retained.factor);
        const Vec w = row.visible ? power_of_two(v) * factor : Vec{};
        store(x + r * LANES, w);
        home += row.home ? w : Vec{};
        away += row.home ? Vec{} : w;
        if (STATISTICS) {
          moment += row.visible ? w * (row.home ? v : v + retained.log_factor) : Vec{};
          if (keys.sinks[keys.position(from + t->row + r)]) sink += w;
        }
      }
    }
    s.home[c] += home, s.away[c] += away, s.sink[c] += sink, s.moment[c] += moment;
  }
  if (!out) return;
  for (int c = 0; c < C; c++)
    if (moved[c])
      for (int d = 0; d < width; d++) store(out + d * LANES + c * W, load(out + d * LANES + c * W) * factor[c]);
}

void attend(const Tile& tile, const Keys& keys, Phase phase, int align, const Retained& retained, bool statistics,
            const float* query, int width, Buffers& buffers, State& state, float* out) {
  Strip strips[2 * STRIPS + 2];
  float* scores = buffers.scores;
  for (int from = 0, taken; from < keys.count; from += taken) {
    const int count = plan(tile, keys, phase, from, align, strips, taken);
    if (!count) continue;
    merged(strips, count, [&](int row, int n, int lane, int vectors) {
      product<false>(n, vectors, width, keys.key + (from + row) * long(width), width, 1, query + lane, LANES,
                     scores + row * LANES + lane, LANES);
    });
    (statistics ? soften<true> : soften<false>)(tile, keys, phase, from, strips, count, retained, scores, state, out,
                                                width);
    if (!out) continue;
    merged(strips, count, [&](int row, int n, int lane, int vectors) {
      product<true>(width, vectors, n, keys.value + (from + row) * long(width), 1, width, scores + row * LANES + lane,
                    LANES, out + lane, LANES);
    });
  }
}

// The sinks that stand before the block of some query of the tile, copied to be contiguous.
Keys gather(const Problem& p, const Tile& tile, int64_t b, int64_t kv, const uint8_t* sinks, int width,
            std::vector<int32_t>& positions, Scratch& scratch) {
  positions.clear();
  const uint8_t *next = sinks + tile.visible.least(), *stop = sinks + tile.home.most();
  while (next < stop && (next = static_cast<const uint8_t*>(std::memchr(next, 1, stop - next))))
    positions.push_back(next++ - sinks);
  const int count = positions.size();
  float* copy = scratch.get(4 * size_t(count) * width + 16);
  for (int i = 0; i < count; i++) {
    row_of(p, p.key, b, kv, positions[i], width, copy + i * width);
    row_of(p, p.value, b, kv, positions[i], width, copy + (count + i) * width);
  }
  float *grad_key = copy + 2 * count * width, *grad_value = grad_key + count * width;
  return {copy, copy + count * width, grad_key, grad_value, 0, count, positions.data(), sinks};
}

Keys between(int32_t first, int32_t stop, const float* key, const float* value, float* grad_key, float* grad_value,
             int width, const uint8_t* sinks) {
  const long offset = first * long(width);
  return {key + offset, value + offset, grad_key ? grad_key + offset : nullptr,
          grad_value ? grad_value + offset : nullptr, first, std::max(0, stop - first), nullptr, sinks};
}

// Writes the statistics of one query from its sums relative to 2^max; returns what its output is to be multiplied with.
float finish(const Problem& p, int64_t b, int64_t h, int64_t q, float max, float home, float away, float undialled,
             float sink, float moment) {
  const float total = home + away;
  const int64_t index = (b * p.heads + h) * p.queries + q;
  p.lse[index] = max + std::log2(total);
  if (p.fidelity) p.fidelity[index] = home / (home + undialled);
  if (p.entropy) {
    p.sink_mass[index] = sink / total;
    p.entropy[index] = std::max(0.0f, std::log2(total) - moment / total);
  }
  return 1.0f / total;
}

void forward_tile(const Problem& p, const Tile& tile, int64_t b, int64_t h, const float* key, const float* value,
                  int width, Buffers& buffers) {
  float* query = buffers.tile.get(2 * size_t(LANES) * width + LANES * width);
  float *out = query + LANES * width, *natural = out + LANES * width;
  const float log2e = 1.4426950408889634;
  for (int lane = 0; lane < tile.lanes; lane++)
    row_of(p, p.query, b, h, tile.first + lane, width, natural + lane * width);
  std::memset(natural + tile.lanes * width, 0, sizeof(float) * (LANES - tile.lanes) * width);
  transpose(natural, LANES, width, p.scaling * log2e, query);
  std::memset(out, 0, sizeof(float) * LANES * width);

  const uint8_t* sinks = p.sinks + b * p.keys;
  const bool statistics = p.entropy, near_only = p.retain == 0.0;
  const int align = tile.position.lane[0], stop = tile.position.most() + 1;
  State state, far;
  if (near_only) {
    std::vector<int32_t> positions;
    const Keys gathered = gather(p, tile, b, h / (p.heads / p.kv_heads), sinks, width, positions, buffers.gathered);
    attend(tile, gathered, SINKS, 0, {}, statistics, query, width, buffers, state, out);
    const Keys near = between(tile.home.least(), stop, key, value, nullptr, nullptr, width, sinks);
    attend(tile, near, NEAR, align, {}, statistics, query, width, buffers, state, out);
    const Keys rest = between(tile.visible.least(), tile.home.most(), key, value, nullptr, nullptr, width, sinks);
    if (p.fidelity) attend(tile, rest, FAR, align, {}, false, query, width, buffers, far, nullptr);
  } else {
    const Keys all = between(tile.visible.least(), stop, key, value, nullptr, nullptr, width, sinks);
    attend(tile, all, ALL, align, Retained(p.retain), statistics, query, width, buffers, state, out);
  }
  transpose(out, width, LANES, 1.0f, natural);
  for (int lane = 0; lane < tile.lanes; lane++) {
    const int c = lane / W, i = lane % W;
    const float home = state.home[c][i], away = state.away[c][i];
    const float undialled = near_only ? far.away[c][i] * std::exp2(far.max[c][i] - state.max[c][i])
                                      : away / float(p.retain);
    const float factor = finish(p, b, h, tile.first + lane, state.max[c][i], home, away, undialled, state.sink[c][i],
                                state.moment[c][i]);
    write_row(p, p.output, at(p.output, b, h, tile.first + lane), natural + lane * width, factor);
  }
}

// Scores of one query over rows [0, count) of keys, padded with NEVER to whole vectors; returns the largest.
float scores_of(const float* query, const float* key, long count, int width, float* scores) {
  float top = NEVER;
  for (long j = 0; j < count; j++, key += width) {
    Vec sum{};
    for (int d = 0; d < width; d += W) sum += load(query + d) * load(key + d);
    float total = 0.0f;
    for (int half = W / 2; half; half /= 2)
      for (int i = 0; i < half; i++) sum[i] += sum[i + half];
    scores[j] = total = sum[0];
    top = total > top ? total : top;
  }
  for (long j = count; j % W; j++) scores[j] = NEVER;
  return top;
}

// Weights retain * 2^(score - top) in place of scores; returns their sum and adds sum of w log2 w to `moment`.
float weights_of(float* scores, long count, float top, const Retained& kept, float& moment) {
  Vec sum{}, moments{};
  for (long j = 0; j < count; j += W) {
    const Vec v = load(scores + j) - (top - kept.exponent), w = power_of_two(v) * kept.factor;
    store(scores + j, w);
    sum += w;
    moments += w * (v + kept.log_factor);
  }
  float total = 0.0f;
  for (int i = 0; i < W; i++) total += sum[i], moment += moments[i];
  return total;
}

// One query without a tile, for decoding, where 63 of 64 lanes would idle: lanes are head_dim, then keys.
void forward_row(const Problem& p, int64_t b, int64_t h, int64_t q, const float* key, const float* value, int width,
                 Buffers& buffers) {
  const Tile tile(p, b, q, 1);
  const int32_t visible = tile.visible.lane[0], home = tile.home.lane[0], stop = tile.position.lane[0] + 1;
  const uint8_t* sinks = p.sinks + b * p.keys;
  std::vector<int32_t> positions;
  const Keys gathered = gather(p, tile, b, h / (p.heads / p.kv_heads), sinks, width, positions, buffers.gathered);
  const bool near_only = p.retain == 0.0, far_wanted = !near_only || p.fidelity;
  const long block = stop - home, far = far_wanted ? home - visible : 0;
  float* query = buffers.tile.get(2 * width + gathered.count + block + far + 4 * W);
  float *out = query + width, *sink_scores = out + width;
  float *block_scores = sink_scores + (gathered.count + W - 1) / W * W,
        *far_scores = block_scores + (block + W - 1) / W * W;
  row_of(p, p.query, b, h, q, width, query);
  for (int d = 0; d < width; d++) query[d] *= p.scaling * 1.4426950408889634, out[d] = 0.0f;

  const Retained retained = near_only ? Retained() : Retained(p.retain);
  float top = scores_of(query, gathered.key, gathered.count, width, sink_scores);
  top = std::max(top, scores_of(query, key + home * long(width), block, width, block_scores));
  float far_top = scores_of(query, key + visible * long(width), far, width, far_scores);
  for (int32_t j : positions)
    if (far_wanted) far_scores[j - visible] = NEVER;  // counted as sinks
  if (!near_only) far_top = top = std::max(top, far_top + retained.exponent);
  float moment = 0.0f, unused = 0.0f;
  const float before = weights_of(sink_scores, gathered.count, top, {}, moment);
  const float near = before + weights_of(block_scores, block, top, {}, moment);
  const float away = weights_of(far_scores, far, far_top, retained, near_only ? unused : moment);
  float sink = before;
  for (int32_t j = home; j < stop; j++)
    if (sinks[j]) sink += block_scores[j - home];
  const float undialled = near_only ? away * std::exp2(far_top - top) : away / float(p.retain);
  const float factor = finish(p, b, h, q, top, near, near_only ? 0.0f : away, undialled, sink, moment);

  const auto add = [&](const float* weights, const float* rows, long count) {
    for (long j = 0; j < count; j++, rows += width)
      for (int d = 0; d < width; d += W) store(out + d, load(out + d) + load(rows + d) * weights[j]);
  };
  add(sink_scores, gathered.value, gathered.count);
  add(block_scores, value + home * long(width), block);
  if (!near_only) add(far_scores, value + visible * long(width), far);
  write_row(p, p.output, at(p.output, b, h, q), out, factor);
}

struct Gradients {  // what the backward pass of one query tile needs, per lane
  alignas(64) float lse[LANES], home[LANES], away[LANES];  // home, away: subtracted from dP before it is scaled by P
  alignas(64) float far_lse[LANES], far[LANES];            // FAR: dS = -far * 2^(score - far_lse)
};

void backpropagate(const Tile& tile, const Keys& keys, Phase phase, int align, const Retained& retained,
                   const Gradients& g, const float* query, const float* natural, const float* grad_out,
                   const float* grad_natural,
                   int width, Buffers& buffers, float* grad_query) {
  Strip strips[2 * STRIPS + 2];
  float *p = buffers.scores, *ds = buffers.other;
  for (int from = 0, taken; from < keys.count; from += taken) {
    const int count = plan(tile, keys, phase, from, align, strips, taken);
    if (!count) continue;
    const long offset = from * long(width);
    merged(strips, count, [&](int row, int n, int lane, int vectors) {
      product<false>(n, vectors, width, keys.key + offset + row * width, width, 1, query + lane, LANES,
                     p + row * LANES + lane, LANES);
      if (phase != FAR)
        product<false>(n, vectors, width, keys.value + offset + row * width, width, 1, grad_out + lane, LANES,
                       ds + row * LANES + lane, LANES);
    });
    for (const Strip* t = strips; t < strips + count; t++)
      for (int c = t->begin; c < t->end; c++) {
        const Vec lse = load((phase == FAR ? g.far_lse : g.lse) + c * W);
        const Vec home = load(g.home + c * W), away = load((phase == FAR ? g.far : g.away) + c * W);
        float *x = p + t->row * LANES + c * W, *y = ds + t->row * LANES + c * W;
        if (t->kind != MIXED && phase != FAR) {
          const Retained kept = t->kind == AWAY ? retained : Retained();
          const Vec shift = lse - kept.exponent, sub = t->kind == AWAY ? away : home;
          for (int r = 0; r < t->count; r++) {
            const Vec w = power_of_two(load(x + r * LANES) - shift) * kept.factor;
            store(x + r * LANES, w);
            store(y + r * LANES, w * (load(y + r * LANES) - sub));
          }
          continue;
        }
        for (int r = 0; r < t->count; r++) {
          const Row row = classify(tile, keys, phase, from + t->row + r, c);
          const Vec v = load(x + r * LANES);
          if (phase == FAR) {
            store(y + r * LANES, row.visible ? -away * power_of_two(v - lse) : Vec{});
            continue;
          }
          const Vec shift = row.home ? lse : lse - retained.exponent;
          const Vec factor = row.home ? fill(1.0f) : fill(retained.factor);
          const Vec w = row.visible ? power_of_two(v - shift) * factor : Vec{};
          store(x + r * LANES, w);
          store(y + r * LANES, row.visible ? w * (load(y + r * LANES) - (row.home ? home : away)) : Vec{});
        }
      }
    merged(strips, count, [&](int row, int n, int lane, int vectors) {
      const int lanes = vectors * W;
      if (phase != FAR)
        product<true>(n, width / W, lanes, p + row * LANES + lane, LANES, 1, grad_natural + lane * width, width,
                      keys.grad_value + offset + row * width, width);
      product<true>(n, width / W, lanes, ds + row * LANES + lane, LANES, 1, natural + lane * width, width,
                    keys.grad_key + offset + row * width, width);
      product<true>(width, vectors, n, keys.key + offset + row * width, 1, width, ds + row * LANES + lane, LANES,
                    grad_query + lane, LANES);
    });
  }
}

void backward_tile(const Problem& p, const Tile& tile, int64_t b, int64_t h, const float* key, const float* value,
                   float* grad_key, float* grad_value, int width, Buffers& buffers) {
  const size_t size = size_t(LANES) * width;
  float* query = buffers.tile.get(5 * size);
  float *natural = query + size, *grad_out = natural + size, *grad_natural = grad_out + size,
        *grad_query = grad_natural + size;
  std::memset(natural, 0, sizeof(float) * size);
  std::memset(grad_natural, 0, sizeof(float) * size);
  const bool near_only = p.retain == 0.0;
  const float retain = p.retain;
  Gradients g;
  for (int lane = 0; lane < LANES; lane++) {
    const int64_t q = tile.first + std::min(lane, tile.lanes - 1), index = (b * p.heads + h) * p.queries + q;
    g.lse[lane] = g.far_lse[lane] = p.lse[index];
    g.home[lane] = g.away[lane] = g.far[lane] = 0.0f;
    if (lane >= tile.lanes) continue;
    float *row = grad_natural + lane * width, *result = grad_query;  // grad_query is free until the first product
    row_of(p, p.query, b, h, q, width, natural + lane * width);
    row_of(p, p.grad_output, b, h, q, width, row);
    row_of(p, p.output, b, h, q, width, result);
    Vec sum{};
    for (int d = 0; d < width; d += W) sum += load(row + d) * load(result + d);
    float dot = 0.0f;
    for (int i = 0; i < W; i++) dot += sum[i];
    g.home[lane] = g.away[lane] = dot;
    if (!p.grad_fidelity) continue;
    const float f = p.fidelity[index], z = f + retain * (1.0f - f), grad = p.grad_fidelity[index];
    g.home[lane] -= grad * z * (1.0f - f);
    if (!near_only) g.away[lane] += grad * z * f / retain;
    g.far[lane] = f > 1e-30f ? grad * f : 0.0f;
    g.far_lse[lane] -= std::log2(std::max(f, 1e-30f));
  }
  std::memset(grad_query, 0, sizeof(float) * size);
  transpose(natural, LANES, width, p.scaling * 1.4426950408889634, query);
  transpose(grad_natural, LANES, width, 1.0f, grad_out);

  const uint8_t* sinks = p.sinks + b * p.keys;
  const int align = tile.position.lane[0], stop = tile.position.most() + 1;
  const Retained retained = near_only ? Retained() : Retained(p.retain);
  const auto run = [&](const Keys& keys, Phase phase) {
    backpropagate(tile, keys, phase, phase == SINKS ? 0 : align, retained, g, query, natural, grad_out, grad_natural,
                  width, buffers, grad_query);
  };
  if (near_only) {
    std::vector<int32_t> positions;
    const Keys gathered = gather(p, tile, b, h / (p.heads / p.kv_heads), sinks, width, positions, buffers.gathered);
    std::memset(gathered.grad_key, 0, sizeof(float) * 2 * gathered.count * width);
    run(gathered, SINKS);
    for (int i = 0; i < gathered.count; i++)
      for (int d = 0; d < width; d++) {
        grad_key[positions[i] * long(width) + d] += gathered.grad_key[i * width + d];
        grad_value[positions[i] * long(width) + d] += gathered.grad_value[i * width + d];
      }
    run(between(tile.home.least(), stop, key, value, grad_key, grad_value, width, sinks), NEAR);
    if (p.grad_fidelity)
      run(between(tile.visible.least(), tile.home.most(), key, value, grad_key, grad_value, width, sinks), FAR);
  } else {
    run(between(tile.visible.least(), stop, key, value, grad_key, grad_value, width, sinks), ALL);
  }
  transpose(grad_query, width, LANES, p.scaling, natural);
  for (int lane = 0; lane < tile.lanes; lane++)
    write_row(p, p.grad_query, at(p.grad_query, b, h, tile.first + lane), natural + lane * width, 1.0f);
}

// How many threads pay for being started: one for every two million multiplications.
int64_t useful_threads(const Problem& p) {
  const double keys = p.retain == 0.0 && !p.fidelity ? 128 : p.keys;
  const double work = 1.0 * p.batch * p.heads * p.queries * keys * p.head_dim;
  return std::max<int64_t>(1, std::min<double>(p.threads, work / 2e6));
}

// Runs work(unit, buffers) for all units on at most `threads` threads.
template <class F>
void in_parallel(int64_t units, int64_t threads, F work) {
  std::atomic<int64_t> next{0};
  const auto loop = [&] {
    Buffers buffers;
    for (int64_t unit; (unit = next.fetch_add(1)) < units;) work(unit, buffers);
  };
  std::vector<std::thread> helpers;
  for (int64_t i = 1; i < std::min(units, threads); i++) {
    try {
      helpers.emplace_back(loop);
    } catch (const std::system_error&) {
      break;  // no more threads to be had; those there are do the work
    }
  }
  loop();
  for (auto& helper : helpers) helper.join();
}

}  // namespace

extern "C" void proloc_forward(const Problem* problem) {
  const Problem& p = *problem;
  const int width = (p.head_dim + W - 1) / W * W;
  const int64_t tiles = (p.queries + LANES - 1) / LANES, groups = p.heads / p.kv_heads;
  // Heads alone keep the threads busy, or each is cut into chunks of queries; the last chunks are the longest.
  const int64_t pairs = p.batch * p.kv_heads, threads = useful_threads(p);
  const int64_t chunks = threads == 1 ? 1 : std::min(tiles, (4 * threads + pairs - 1) / pairs);
  in_parallel(pairs * chunks, threads, [&](int64_t unit, Buffers& buffers) {
    const int64_t chunk = chunks - 1 - unit / pairs, b = unit % pairs / p.kv_heads, kv = unit % p.kv_heads;
    const int64_t begin = chunk * tiles / chunks, end = (chunk + 1) * tiles / chunks;
    const int64_t stop = p.query_offset + std::min(end * LANES, p.queries);
    // Sinks are gathered by themselves, so without the dial's away keys nothing before the blocks is touched.
    const int32_t* start = (p.retain == 0.0 && !p.fidelity ? p.home_start : p.visible_start) + b * p.queries;
    const int32_t* last = start + std::min(end * LANES, p.queries);
    const int64_t from = std::max(0, *std::min_element(start + begin * LANES, last));
    const float* key = rows(p, p.key, b, kv, from, stop, width, buffers.key);
    const float* value = rows(p, p.value, b, kv, from, stop, width, buffers.value);
    if (p.queries <= FEW) {
      for (int64_t h = kv * groups; h < (kv + 1) * groups; h++)
        for (int64_t q = 0; q < p.queries; q++) forward_row(p, b, h, q, key, value, width, buffers);
      return;
    }
    for (int64_t t = begin; t < end; t++) {
      const Tile tile(p, b, t * LANES);
      for (int64_t h = kv * groups; h < (kv + 1) * groups; h++)
        forward_tile(p, tile, b, h, key, value, width, buffers);
    }
  });
}

extern "C" void proloc_backward(const Problem* problem) {
  const Problem& p = *problem;
  const int width = (p.head_dim + W - 1) / W * W;
  const int64_t tiles = (p.queries + LANES - 1) / LANES, groups = p.heads / p.kv_heads;
  in_parallel(p.batch * p.kv_heads, useful_threads(p), [&](int64_t unit, Buffers& buffers) {
    const int64_t b = unit / p.kv_heads, kv = unit % p.kv_heads;
    const float* key = rows(p, p.key, b, kv, 0, p.keys, width, buffers.key);
    const float* value = rows(p, p.value, b, kv, 0, p.keys, width, buffers.value);
    const size_t size = size_t(p.keys) * width;
    float *grad_key = buffers.grad_key.get(size), *grad_value = buffers.grad_value.get(size);
    std::memset(grad_key, 0, size * 4);
    std::memset(grad_value, 0, size * 4);
    for (int64_t t = 0; t < tiles; t++) {
      const Tile tile(p, b, t * LANES);
      for (int64_t h = kv * groups; h < (kv + 1) * groups; h++)
        backward_tile(p, tile, b, h, key, value, grad_key, grad_value, width, buffers);
    }
    for (int64_t j = 0; j < p.keys; j++) {
      write_row(p, p.grad_key, at(p.grad_key, b, kv, j), grad_key + j * width, p.scaling);
      write_row(p, p.grad_value, at(p.grad_value, b, kv, j), grad_value + j * width, 1.0f);
    }
  });
}
