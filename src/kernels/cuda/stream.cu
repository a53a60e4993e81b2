// One decode step of the language model as one kernel: the rows of the embedding table to logits, for up to BATCH sequences. The blocks stay resident and meet at barriers; each warp streams its weights through a ring in shared
// memory, which runs ahead of the barriers, since weights do not depend on activations.
//
// Sums are grouped by the shape alone, never by the grid or the batch: a sequence gets the same values alone and beside others.
//
// Shape (defines): HIDDEN INTER HEADS KV_HEADS DIM LAYERS VOCAB; BATCH; FORM 0 four bits by table, 1 four bits with a zero point,
// 2 16-bit rows; SPLITS of down; LORA 0, or the largest rank of the adapters' pairs, a multiple of 64, of
// ADAPTERS adapters in a step.

#define THREADS 512
#define WARPS (THREADS / 32)
#define GROUP (HEADS / KV_HEADS)
#define QKV ((HEADS + 2 * KV_HEADS) * DIM)
#define CHUNK 128
#define INFINITE __int_as_float(0x7f800000)
// With several sequences it is cheaper to add up parts once, with a barrier more, than in every block.
#define GATHER (BATCH >= 4)
#define CODED (FORM != 2)
#define SLOT_BYTES (CODED ? TILE_BYTES : 2048)
// A tile of 16-bit rows has 16 rows x 64 columns, whole lines of the cache, in this many slots of the ring.
#define DENSE_COLUMNS 64
#define DENSE_SLOTS (CODED ? 2 : 1)
#define SLOT_COLUMNS (DENSE_COLUMNS / DENSE_SLOTS)
// Whether the kernel can write `times`.
#ifndef TIMES
#define TIMES 0
#endif
#ifndef STAGES
#define STAGES 4
#endif
#ifndef ACC_FLOATS
#define ACC_FLOATS 8192
#endif
#ifndef LORA
#define LORA 0
#define ADAPTERS 0
#endif
// Pairs of a layer: q, k, v, o, gate, up, down; of an adapter.
#define LAYER_PAIRS 7
#define ADAPTER_PAIRS (LAYERS * LAYER_PAIRS + 1)
// Warps that multiply a part of the columns by 16 rows of a pair's first matrix, and their sums.
#define INNER_WARPS 8
#define INNER_FLOATS (LORA > 0 ? WARPS * 16 * BATCH : 0)
#define PAIRS_BYTES (LORA > 0 ? (ADAPTERS * ADAPTER_PAIRS * 24 + 15) / 16 * 16 : 0)
#define INNER_STRIDE (3 * LORA + 8)
#define ROUND_FLOATS (ACC_FLOATS - INNER_FLOATS)

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

// A LoRA pair of a linear layer, which adds scale * b (a x).
struct Pair {
  const u16* a;             // [rank][columns]
  const u16* b;             // [rows][rank]
  int rank;                 // a multiple of 8; 0: no pair
  float scale;
};

struct Sequence {
  u16* keys;                // [LAYERS][KV_HEADS][capacity][DIM]
  u16* values;
  u64 layer_stride;         // values from layer to layer
  int capacity;
  int length;               // tokens held before this step
  int position;             // rotary position of this token
  int token;                // row of the embedding
  long long adapter;        // of the step's; negative: none
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
  u64* times;               // null, or, where TIMES, [4 * LAYERS + 1][5]: activations ready, products, barrier; attention, barrier
  u64* inner_parts;         // [BATCH][3][most_parts()][LORA]: a x, tagged; where LORA
  const Pair* adapters[8];  // of the step's adapters: [LAYERS][LAYER_PAIRS], and the head's
  float eps;
  float rotary_factor;
  int chunks;               // row length of partials, in chunks
  int adapter_count;        // at most ADAPTERS
  u32 epoch;                // another one in each step
  Sequence sequences[8];
};

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void copy16(u32 to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

// A line of the cache, of which this is a part, is fetched as a whole.
__device__ __forceinline__ void copy16_line(u32 to, const void* from) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void copy16_or_zero(u32 to, const void* from, bool there) {
  const int bytes = there ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
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

// f16 pairs as pairs of the model's type.
__device__ __forceinline__ u32 from_f16(u32 both) {
#if VALUE_TYPE == 1
  return two(half_to_float((u16)both), half_to_float((u16)(both >> 16)));
#else
  return both;
#endif
}

// The codes at bits 0 and 16 less zero points: two f16. `zeros` are 1024 more than they are, as a code is in f16's lowest bits.
__device__ __forceinline__ u32 less(u32 codes, u32 zeros) {
  u32 both;
  asm("{.reg .b32 c; lop3.b32 c, %1, 0x000f000f, 0x64006400, 0xea; sub.rn.f16x2 %0, c, %2;}" : "=r"(both) : "r"(codes), "r"(zeros));
  return both;
}

// A value with a tag in one word: who reads the tag has the value, without a barrier.
__device__ __forceinline__ void store_tagged(u64* to, float value, u32 tag) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"((u64)tag << 32 | __float_as_uint(value)) : "memory");
}

__device__ __forceinline__ u64 load_tagged(const u64* from) {
  u64 both;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(both) : "l"(from) : "memory");
  return both;
}

__device__ __forceinline__ float power_of_two(int e) { return __int_as_float((e + 127) << 23); }

// The stages of a step that multiply by weights: rows and columns of one split, in tiles of 16 rows; the groups in which a row's
// products are summed.
enum Kind { QKV_STAGE, O_STAGE, GATE_UP_STAGE, DOWN_STAGE, HEAD_STAGE, KINDS };

#define BY_COLUMNS (CODED ? 128 : DENSE_COLUMNS)

__device__ __forceinline__ int kind_of(int stage) { return stage == 4 * LAYERS ? HEAD_STAGE : stage % 4; }

template <int KIND> struct Shape;
template <> struct Shape<QKV_STAGE> {
  static constexpr int rows = QKV / 16, splits = 1, width = HIDDEN, columns = width / BY_COLUMNS, chunks = (columns + 1) / 2;
  static constexpr int pairs = 3;
};
template <> struct Shape<O_STAGE> {
  static constexpr int rows = HIDDEN / 16, splits = KV_HEADS, width = GROUP * DIM, columns = width / BY_COLUMNS, chunks = columns;
  static constexpr int pairs = 1;
};
template <> struct Shape<GATE_UP_STAGE> {
  static constexpr int rows = INTER / 8, splits = 1, width = HIDDEN, columns = width / BY_COLUMNS, chunks = (columns + 3) / 4;
  static constexpr int pairs = 2;
};
template <> struct Shape<DOWN_STAGE> {
  static constexpr int rows = HIDDEN / 16, splits = SPLITS, width = INTER / SPLITS, columns = width / BY_COLUMNS, chunks = (columns + 3) / 4;
  static constexpr int pairs = 1;
};
template <> struct Shape<HEAD_STAGE> {
  static constexpr int rows = VOCAB / 16, splits = 1, width = HIDDEN, columns = width / DENSE_COLUMNS, chunks = (columns + 7) / 8;
  static constexpr int pairs = 1;
};

// Parts of the columns of a split that the warps of a group multiply by a pair's first matrix, a tile each.
constexpr __device__ int inner_parts(int width) { return (width / DENSE_COLUMNS + INNER_WARPS - 1) / INNER_WARPS; }

// A block's row tiles of a stage, and which units (chunks of row tiles) and tiles each warp takes of a round.
struct Share {
  int split, splits, first, rows, round, columns, chunks, width;
  u32 per_chunk;  // columns, in 2^-16
  // First tile, unit and its chunk of each warp, in a whole round and in the last one.
  int tiles[2][WARPS + 1];
  int units[2][WARPS + 1];
  int at_chunk[2][WARPS + 1];
#if LORA > 0
  int pairs, first_pair;  // of the layer's
  // Of each group of warps: its part of the columns, and which of the rows' tiles it takes.
  int part[WARPS / INNER_WARPS], part_first[WARPS / INNER_WARPS], part_tiles[WARPS / INNER_WARPS], tile[WARPS / INNER_WARPS];
  int tile_step;
#endif
  // Columns at which a chunk begins.
  __device__ __forceinline__ int chunk_start(int chunk) const { return chunk * per_chunk >> 16; }
};

template <int KIND> __device__ void set_share(Share* shares) {
  using S = Shape<KIND>;
  Share& share = shares[KIND];
  const int blocks = gridDim.x / S::splits, split = blockIdx.x / blocks, index = blockIdx.x % blocks;
  const bool idle = split >= S::splits;
  const int first = idle ? 0 : (int)((long long)S::rows * index / blocks);
  const int rows = idle ? 0 : (int)((long long)S::rows * (index + 1) / blocks) - first;
  constexpr int most = ROUND_FLOATS / (16 * BATCH) / (S::chunks + (LORA > 0)), round = most < 1 ? 1 : most;
  static_assert(S::chunks < 256, "chunk_start is exact for few chunks");
  const int w = threadIdx.x;
  if (w == 0) {
    share.split = idle ? 0 : split;
    share.splits = S::splits;
    share.first = first;
    share.rows = rows;
    share.round = round;
    share.columns = S::columns;
    share.chunks = S::chunks;
    share.width = S::width;
    share.per_chunk = ((u32)S::columns * 65536 + S::chunks - 1) / S::chunks;
  }
  if (w <= WARPS) {
    for (int last = 0; last < 2; last++) {
      const int count = rows == 0 ? 0 : last ? (rows + round - 1) % round + 1 : round;
      const int units = count * S::chunks, unit = units * w / WARPS, row = unit / S::chunks, chunk = unit - row * S::chunks;
      share.units[last][w] = unit;
      share.at_chunk[last][w] = chunk;
      share.tiles[last][w] = row * S::columns + chunk * S::columns / S::chunks;
    }
  }
#if LORA > 0
  const int group = w - 32;
  if (group >= 0 && group < WARPS / INNER_WARPS) {
    constexpr int parts = inner_parts(S::width), tiles = S::width / DENSE_COLUMNS;
    const int step = max(1, blocks * (WARPS / INNER_WARPS) / parts), at = index + group * blocks, part = at % parts;
    share.pairs = S::pairs;
    share.first_pair = KIND == O_STAGE ? 3 : KIND == GATE_UP_STAGE ? 4 : KIND == DOWN_STAGE ? 6 : 0;
    share.tile_step = step;
    share.part[group] = part;
    share.part_first[group] = part * tiles / parts;
    share.part_tiles[group] = (part + 1) * tiles / parts - part * tiles / parts;
    share.tile[group] = idle || at / parts >= step ? 1 << 20 : at / parts;
  }
#endif
}
