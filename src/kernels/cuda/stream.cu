// One decode step of the language model as one kernel: the rows of the embedding table to logits, for up to BATCH sequences. The blocks stay resident and meet at barriers; each warp streams its weights through a ring in shared
// memory, which runs ahead of the barriers, since weights do not depend on activations.
//
// Sums are grouped by the shape alone, never by the grid or the batch: a sequence gets the same values alone and beside others.
//
// Shape (defines): HIDDEN INTER HEADS KV_HEADS DIM LAYERS VOCAB; BATCH; FORM 0 four bits by table, 2 16-bit rows; SPLITS of down.

#define THREADS 512
#define WARPS (THREADS / 32)
#define GROUP (HEADS / KV_HEADS)
#define QKV ((HEADS + 2 * KV_HEADS) * DIM)
#define CHUNK 128
#define INFINITE __int_as_float(0x7f800000)
// With several sequences it is cheaper to add up parts once, with a barrier more, than in every block.
#define GATHER (BATCH >= 4)
#define DENSE_COLUMNS (FORM == 0 ? 32 : 64)
#define SLOT_BYTES (FORM == 0 ? TILE_BYTES : 2048)
#ifndef STAGES
#define STAGES 4
#endif
#ifndef ACC_FLOATS
#define ACC_FLOATS 8192
#endif

struct Layer {
  const u8* qkv;            // tiles, or the rows of q, k and v
  const u8* o;
  const u8* gate_up;        // tiles, or the rows of gate
  const u8* down;
  const u8* up;             // rows, where weights have 16 bits
  const float* bias;        // [QKV]
  const float* input_norm;  // [HIDDEN]
  const float* post_norm;   // [HIDDEN]
  float units[4];           // factors of the sums of qkv, o, gate and up, down
};

struct Sequence {
  u16* keys;                // [LAYERS][KV_HEADS][capacity][DIM]
  u16* values;
  u64 layer_stride;         // values from layer to layer
  int capacity;
  int length;               // tokens held before this step
  int position;             // rotary position of this token
  int token;                // row of the embedding
};

struct Step {
  const Layer* layers;
  const u16* embedding;     // [rows][HIDDEN]
  const u8* head;           // 16-bit rows [VOCAB][HIDDEN]
  const float* norm;        // [HIDDEN]
  const float* inverse;     // rotary frequencies [DIM / 2]
  const u32* pairs;         // [256] two f16 of a byte of codes
  float* x;                 // [2][BATCH][HIDDEN]
  float* qkv;               // [BATCH][QKV]
  float* partials;          // [BATCH][chunks][HEADS][DIM]
  float2* statistics;       // [BATCH][chunks][HEADS]: largest score, sum
  float* attended;          // [BATCH][HEADS * DIM]; where GATHER
  u16* activations;         // [BATCH][HIDDEN]; where GATHER
  float* factors;           // [BATCH]; where GATHER
  float* o_parts;           // [KV_HEADS][BATCH][HIDDEN]
  float* inner;             // [BATCH][INTER]
  float* down_parts;        // [SPLITS][BATCH][HIDDEN]
  float* logits;            // [BATCH][VOCAB]
  u32* barrier;             // [2], zero before and after
  u64* times;               // null, or [4 * LAYERS + 1][5]: activations ready, products, barrier; attention, barrier
  float eps;
  float rotary_factor;
  int chunks;               // row length of partials, in chunks
  Sequence sequences[8];
};

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void copy16(u32 to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void mma_f16(float* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Values of the model's 16-bit type.
__device__ __forceinline__ void mma(float* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
#if VALUE_TYPE == 1
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
  mma_f16(c, a0, a1, a2, a3, b0, b1);
#endif
}

__device__ __forceinline__ u32 two_f16(float low, float high) {
  u32 both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

__device__ __forceinline__ uint4 load_cg(const void* p) {
  uint4 v;
  asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
  return v;
}

__device__ __forceinline__ float power_of_two(int e) { return __int_as_float((e + 127) << 23); }

// The stages of a step that multiply by weights: rows and columns of one split, in tiles of 16 rows; the groups in which a row's
// products are summed.
enum Kind { QKV_STAGE, O_STAGE, GATE_UP_STAGE, DOWN_STAGE, HEAD_STAGE, KINDS };

#define BY_COLUMNS (FORM == 0 ? 128 : DENSE_COLUMNS)

template <int KIND> struct Shape;
template <> struct Shape<QKV_STAGE> {
  static constexpr int rows = QKV / 16, splits = 1, columns = HIDDEN / BY_COLUMNS, chunks = (columns + 1) / 2;
};
template <> struct Shape<O_STAGE> {
  static constexpr int rows = HIDDEN / 16, splits = KV_HEADS, columns = GROUP * DIM / BY_COLUMNS, chunks = columns;
};
template <> struct Shape<GATE_UP_STAGE> {
  static constexpr int rows = INTER / 8, splits = 1, columns = HIDDEN / BY_COLUMNS, chunks = (columns + 3) / 4;
};
template <> struct Shape<DOWN_STAGE> {
  static constexpr int rows = HIDDEN / 16, splits = SPLITS, columns = INTER / SPLITS / BY_COLUMNS, chunks = (columns + 3) / 4;
};
template <> struct Shape<HEAD_STAGE> {
  static constexpr int rows = VOCAB / 16, splits = 1, columns = HIDDEN / DENSE_COLUMNS, chunks = (columns + 7) / 8;
};

// A block's row tiles of a stage, and which units (chunks of row tiles) and tiles each warp takes of a round.
struct Share {
  int split, first, rows, round, columns, chunks;
  // First tile and unit of each warp, in a whole round and in the last one.
  int tiles[2][WARPS + 1];
  int units[2][WARPS + 1];
};

template <int KIND> __device__ void set_share(Share* shares) {
  using S = Shape<KIND>;
  Share& share = shares[KIND];
  const int blocks = gridDim.x / S::splits, split = blockIdx.x / blocks, index = blockIdx.x % blocks;
  const bool idle = split >= S::splits;
  const int first = idle ? 0 : (int)((long long)S::rows * index / blocks);
  const int rows = idle ? 0 : (int)((long long)S::rows * (index + 1) / blocks) - first;
  constexpr int most = ACC_FLOATS / (16 * BATCH) / S::chunks, round = most < 1 ? 1 : most;
  const int w = threadIdx.x;
  if (w == 0) {
    share.split = idle ? 0 : split;
    share.first = first;
    share.rows = rows;
    share.round = round;
    share.columns = S::columns;
    share.chunks = S::chunks;
  }
  if (w <= WARPS) {
    for (int last = 0; last < 2; last++) {
      const int count = last ? (rows + round - 1) % round + 1 : round;
      const int units = (rows == 0 ? 0 : count) * S::chunks;
      const int unit = units * w / WARPS, row = unit / S::chunks, chunk = unit - row * S::chunks;
      share.units[last][w] = unit;
      share.tiles[last][w] = row * S::columns + chunk * S::columns / S::chunks;
    }
  }
}

// A warp's loads: it goes through the tiles of all stages in order, STAGES - 1 tiles ahead of the products.
struct Producer {
  const u8* head;
  const Layer* layers;
  const Share* shares;
  u32 ring;                  // of this lane
  int lane, warp;
  int stage, row, left;      // tiles left in the round
  const u8 *low, *high;      // next tile; `high`: rows 8 to 15 of 16-bit rows
  int column, columns;       // 16-bit rows
  long long skip;            // from the end of a row tile to the next

  __device__ Producer(const u8* head, const Layer* layers, const Share* shares, u32 ring)
      : head(head), layers(layers), shares(shares), ring(ring + threadIdx.x % 32 * 16), lane(threadIdx.x % 32), warp(threadIdx.x / 32) {
    stage = -1;
    row = 0;
    left = 0;
    advance();
  }

  __device__ __forceinline__ void advance() {
    while (left == 0) {
      row = stage < 0 ? 0 : row + shares[stage == 4 * LAYERS ? HEAD_STAGE : stage % 4].round;
      while (stage < 0 || row >= shares[stage == 4 * LAYERS ? HEAD_STAGE : stage % 4].rows) {
        stage++;
        if (stage > 4 * LAYERS) return;
        row = 0;
      }
      const int kind = stage == 4 * LAYERS ? HEAD_STAGE : stage % 4;
      const Share& share = shares[kind];
      const int last = share.rows - row <= share.round;
      const int next = share.tiles[last][warp];
      left = share.tiles[last][warp + 1] - next;
      if (left == 0) continue;
      const Layer& layer = layers[min(stage / 4, LAYERS - 1)];
      if (FORM == 0 && kind != HEAD_STAGE) {
        const u8* base = kind == QKV_STAGE ? layer.qkv : kind == O_STAGE ? layer.o : kind == GATE_UP_STAGE ? layer.gate_up : layer.down;
        const int rows = kind == O_STAGE || kind == DOWN_STAGE ? HIDDEN / 16 : 0;
        low = base + ((long long)(share.split * rows + share.first + row) * share.columns + next) * TILE_BYTES + lane * 16;
        continue;
      }
      columns = share.columns;
      column = next % columns;
      const int g = lane / 4, t = lane % 4, r = share.first + row + next / columns;
      long long width = HIDDEN, first = (long long)r * 16 + g;
      if (kind == HEAD_STAGE) {
        low = high = head;
      } else if (kind == QKV_STAGE) {
        low = high = layer.qkv;
      } else if (kind == GATE_UP_STAGE) {
        low = layer.gate_up;
        high = layer.up;
        first = (long long)r * 8 + g;
      } else {
        low = high = kind == O_STAGE ? layer.o : layer.down;
        width = kind == O_STAGE ? HEADS * DIM : INTER;
      }
      const long long at = (first * width + ((long long)share.split * columns + column) * DENSE_COLUMNS) * 2 + t * 16;
      low += at;
      high += at + (kind == GATE_UP_STAGE ? 0 : 16 * width);
      skip = (kind == GATE_UP_STAGE ? 16 : 32) * width - (long long)columns * DENSE_COLUMNS * 2;
    }
  }

  // One tile into `slot`; always commits a group.
  template <bool CODED> __device__ __forceinline__ void copy(int slot) {
    const u32 to = ring + slot * SLOT_BYTES;
    if (CODED) {
      copy16(to, low);
      copy16(to + 512, low + 512);
      if (lane < 4) copy16(to + 1024, low + 1024);
      low += TILE_BYTES;
    } else {
#pragma unroll
      for (int i = 0; i < DENSE_COLUMNS / 32; i++) {
        copy16(to + 2 * i * 512, low + i * 64);
        copy16(to + (2 * i + 1) * 512, high + i * 64);
      }
      low += DENSE_COLUMNS * 2;
      high += DENSE_COLUMNS * 2;
      if (++column == columns) {
        column = 0;
        low += skip;
        high += skip;
      }
    }
    left--;
  }

  __device__ __forceinline__ void fetch(int slot) {
    if (left == 0) advance();
    if (left > 0) {
      if (FORM == 0 && stage != 4 * LAYERS) copy<true>(slot);
      else copy<false>(slot);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
};

