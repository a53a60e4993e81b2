// LoRA in the decode step. At the start of a stage the groups of warps of all blocks divide a x of all adapters among themselves;
// each sums its part of the columns and writes it, tagged, where all can read it. Half-way through its weights a block collects the
// parts, and at the end adds b (a x) to its rows. Both matrices come through the ring.

#if LORA > 0
// `pairs`: [ADAPTERS][ADAPTER_PAIRS]; those of a stage.
__device__ __forceinline__ const Pair* pairs_of(const Pair* pairs, const Share& share, int adapter, int stage) {
  return pairs + adapter * ADAPTER_PAIRS + stage / 4 * LAYER_PAIRS + share.first_pair;
}

// Of all stages, the most parts of all splits.
constexpr __device__ int most_parts() {
  const int wide = inner_parts(HIDDEN), o = KV_HEADS * inner_parts(GROUP * DIM), down = SPLITS * inner_parts(INTER / SPLITS);
  const int most = wide > o ? wide : o;
  return most > down ? most : down;
}

// Tiles of 16 rows of a pair's first matrix.
__device__ __forceinline__ int inner_tiles(const Pair& pair) { return (pair.rank + 15) / 16; }

// Those of all pairs of a stage.
__device__ __forceinline__ int all_inner_tiles(const Pair* pairs, const Share& share, int adapters, int stage) {
  int tiles = 0;
#pragma unroll 1
  for (int a = 0; a < adapters; a++)
#pragma unroll 1
    for (int i = 0; i < share.pairs; i++) tiles += inner_tiles(pairs_of(pairs, share, a, stage)[i]);
  return tiles;
}

struct InnerUnit {
  const Pair* pair;
  int adapter, index;  // of the stage's pairs
  int tile;
};

// The pair of tile `tile` of all.
__device__ __forceinline__ InnerUnit find_inner(const Pair* pairs, const Share& share, int stage, int tile) {
  int a = 0, i = 0;
  const Pair* pair = pairs_of(pairs, share, 0, stage);
#pragma unroll 1
  while (tile >= inner_tiles(*pair)) {
    tile -= inner_tiles(*pair);
    pair++;
    if (++i == share.pairs) {
      i = 0;
      pair = pairs_of(pairs, share, ++a, stage);
    }
  }
  return {pair, a, i, tile};
}

// The first row tile at or after `tile` to which a block of the split adds: the blocks of the splits take turns.
__device__ __forceinline__ int first_outer(int kind, int split, int tile) {
  const int splits = kind == O_STAGE ? KV_HEADS : kind == DOWN_STAGE ? SPLITS : 1;
  const int rest = kind == O_STAGE ? tile % KV_HEADS : kind == DOWN_STAGE ? tile % SPLITS : 0;
  return tile + (split < rest ? split + splits : split) - rest;
}

// Which of the stage's pairs a row tile belongs to; `tile` becomes the tile of that pair.
__device__ __forceinline__ int outer_pair(int kind, int& tile) {
  constexpr int queries = HEADS * DIM / 16, keys = KV_HEADS * DIM / 16;
  if (kind != QKV_STAGE || tile < queries) return 0;
  tile -= queries;
  if (tile < keys) return 1;
  tile -= keys;
  return 2;
}

// Tiles of DENSE_COLUMNS ranks of a row tile of pair `index`.
__device__ __forceinline__ int outer_tiles(const Pair* pairs, int kind, int index) {
  int rank = pairs[index].rank;
  if (kind == GATE_UP_STAGE) rank = max(rank, pairs[1].rank);
  return (rank + DENSE_COLUMNS - 1) / DENSE_COLUMNS;
}
#endif
