//! The vision tower: patches → merged image tokens.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::{
    VisionConfig,
    layers::{Mlp, RmsNorm, apply_rotary},
    linear::{Linear, LinearWeight, tensor_bytes},
    lora::AdapterIndex,
    model::{CancelCheck, check_cancelled},
    rope::inverse_frequencies,
    token_grid::TokenGrids,
    varlen_attention::Segments,
    weights::Weights,
    windows::WindowPlan,
};
use crate::Result;
use crate::kernels::cpu::Heads;
use crate::processing::Grid;
use crate::torch::{autograd::recomputed, upload};

/// Constant of the published models; the vision config has no key for it.
const EPS: f64 = 1e-6;

/// Reference: [`Qwen2_5_VLVisionBlock`](https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py#L346-L373).
struct Block {
    norm1: RmsNorm,
    qkv: Linear,
    proj: Linear,
    norm2: RmsNorm,
    mlp: Mlp,
}

/// Inputs of a block's attention besides its weights.
struct AttentionContext {
    heads: usize,
    dim: usize,
    /// Rotary tables, `[rows, dim]` each.
    cos: Tensor,
    sin: Tensor,
    /// Windows, or whole images.
    segments: Segments,
    adapter: AdapterIndex,
}

// SAFETY: its tables are only read, which libtorch allows on any thread.
unsafe impl Sync for AttentionContext {}

// SAFETY: a block is shared only by its tower and autograd's graph, whose backward pass runs while the tower's thread waits.
unsafe impl Sync for Block {}

impl Block {
    /// Whether a LoRA pair of it is being trained.
    fn trains(&self) -> bool {
        let linears = [
            &self.qkv,
            &self.proj,
            &self.mlp.gate,
            &self.mlp.up,
            &self.mlp.down,
        ];
        let mut pairs = linears.into_iter().flat_map(|linear| linear.loras.all());
        pairs.any(|lora| lora.a.requires_grad())
    }

    /// The whole block, out of place; x: `[rows, hidden]` → same shape.
    fn forward(&self, x: &Tensor, context: &AttentionContext) -> Result<Tensor> {
        let x = x.f_add(&self.attention(&self.norm1.forward(x)?, context)?)?;
        let delta = self.mlp.forward(&self.norm2.forward(&x)?, context.adapter)?;
        Ok(x.f_add(&delta)?)
    }

    /// Attention within the context's segments; x: `[rows, hidden]` → same shape.
    ///
    /// Reference: [`Qwen2_5_VLVisionAttention`](https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py#L263-L343).
    fn attention(&self, x: &Tensor, context: &AttentionContext) -> Result<Tensor> {
        let (rows, heads, dim) = (x.size()[0], context.heads as i64, context.dim as i64);
        let heads_qk = Heads {
            count: 2 * context.heads,
            dim: context.dim,
        };
        // Rotates queries and keys, which come first in each row.
        let qkv = apply_rotary(
            self.qkv.forward(x, context.adapter)?,
            heads_qk,
            &context.cos,
            &context.sin,
        )?;
        let qkv = qkv.f_view([rows, 3, heads, dim])?;
        // One autograd node for all three, whose backward pass stacks their gradients at once.
        let parts = qkv.f_unbind(1)?;
        let [q, k, v] = parts.as_slice() else {
            unreachable!("a dimension of three");
        };
        let attended = context.segments.attention(q, k, v, false)?;
        self.proj.forward(&attended, context.adapter)
    }
}

/// Vision tower: patches → image features in the language model's width.
///
/// Reference: [`Qwen2_5_VisionTransformerPretrainedModel`](https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py#L391-L494).
pub(super) struct VisionTower {
    config: VisionConfig,
    patch_embed: Linear,
    /// Shared with autograd's graph.
    blocks: Vec<Arc<Block>>,
    merger_norm: RmsNorm,
    merger_in: Linear,
    merger_out: Linear,
    /// Also used for the language model's M-RoPE positions.
    pub(super) token_grids: TokenGrids,
    kind: Kind,
    device: Device,
}

impl VisionTower {
    pub(super) fn load(w: &Weights<'_>, config: &VisionConfig) -> Result<Self> {
        let c = config;
        let patch = [
            c.hidden_size,
            c.in_channels,
            c.temporal_patch_size,
            c.patch_size,
            c.patch_size,
        ];
        let embed = w.matrix("visual.patch_embed.proj.weight", &patch)?;
        let blocks = (0..c.depth)
            .map(|i| {
                let name = format!("visual.blocks.{i}");
                Ok(Arc::new(Block {
                    norm1: w.rms_norm(&format!("{name}.norm1"), c.hidden_size, EPS)?,
                    qkv: w.linear(
                        &format!("{name}.attn.qkv"),
                        3 * c.hidden_size,
                        c.hidden_size,
                        true,
                    )?,
                    proj: w.linear(&format!("{name}.attn.proj"), c.hidden_size, c.hidden_size, true)?,
                    norm2: w.rms_norm(&format!("{name}.norm2"), c.hidden_size, EPS)?,
                    mlp: Mlp::load(
                        w,
                        &format!("{name}.mlp"),
                        (c.hidden_size, c.intermediate_size),
                        true,
                        c.hidden_act,
                    )?,
                }))
            })
            .collect::<Result<Vec<_>>>()?;
        let merged = c.hidden_size * c.spatial_merge_size * c.spatial_merge_size;
        Ok(Self {
            patch_embed: Linear::new(
                LinearWeight::Dense(embed.f_reshape([c.hidden_size as i64, c.patch_values() as i64])?),
                None,
                &w.scratch,
            ),
            blocks,
            merger_norm: w.rms_norm("visual.merger.ln_q", c.hidden_size, EPS)?,
            merger_in: w.linear("visual.merger.mlp.0", merged, merged, true)?,
            merger_out: w.linear("visual.merger.mlp.2", c.out_hidden_size, merged, true)?,
            token_grids: TokenGrids::new(w.device, w.reductions, c.spatial_merge_size),
            config: config.clone(),
            kind: w.kind,
            device: w.device,
        })
    }

    /// pixel_values: `[patches, patch_values]` f32 of all images, concatenated → `[merged tokens, out_hidden]`.
    ///
    /// `recompute`: activation checkpointing of the blocks, if the tower is being trained. `cancel` is polled before every block.
    pub(super) fn forward(
        &self,
        pixel_values: &Tensor,
        grids: &[Grid],
        adapter: AdapterIndex,
        recompute: bool,
        cancel: &mut CancelCheck<'_>,
    ) -> Result<Tensor> {
        let c = &self.config;
        let unit = (c.spatial_merge_size * c.spatial_merge_size) as i64;
        let pages = self.token_grids.of(grids)?;
        let plan = WindowPlan::new(&pages, c.window_tokens());
        let order = upload(&plan.order, self.device)?;
        let in_window_order = |x: &Tensor| -> Result<Tensor> {
            let rows = x.size()[0];
            let grouped = x.f_reshape([rows / unit, unit, -1])?;
            Ok(grouped.f_index_select(0, &order)?.f_reshape([rows, -1])?)
        };
        let pixels = pixel_values.f_to_device(self.device)?.f_to_kind(self.kind)?;
        let mut x = in_window_order(&self.patch_embed.forward(&pixels, adapter)?)?;
        let angles = in_window_order(&self.angles(grids)?)?;
        let (cos, sin) = (angles.f_cos()?, angles.f_sin()?);
        let windows: Vec<i64> = plan.lengths.iter().map(|&n| n as i64 * unit).collect();
        let images: Vec<i64> = pages
            .iter()
            .flat_map(|page| std::iter::repeat_n(page.frame_patches as i64, page.frames))
            .collect();
        let context = |lengths| -> Result<Arc<AttentionContext>> {
            Ok(Arc::new(AttentionContext {
                heads: c.num_heads,
                dim: c.head_dim,
                cos: cos.shallow_clone(),
                sin: sin.shallow_clone(),
                segments: Segments::new(lengths, self.kind, self.device)?,
                adapter,
            }))
        };
        let (images, windows) = (context(images)?, context(windows)?);
        let recompute = recompute && self.blocks.iter().any(|block| block.trains());
        if recompute {
            // A recomputed block gets its gradient through its input, which must be tracked.
            x = x.set_requires_grad(true);
        }
        let mut delta = None;
        for (i, block) in self.blocks.iter().enumerate() {
            check_cancelled(cancel)?;
            let context = match c.fullatt_block_indexes.contains(&i) {
                true => &images,
                false => &windows,
            };
            if recompute {
                let (block, context) = (Arc::clone(block), Arc::clone(context));
                x = recomputed(&x, move |x| block.forward(x, &context))?;
                continue;
            }
            let normed = block.norm1.add_and_norm(&mut x, delta.as_ref())?;
            let attended = block.attention(&normed, context)?;
            let normed = block.norm2.add_and_norm(&mut x, Some(&attended))?;
            delta = Some(block.mlp.forward(&normed, adapter)?);
        }
        let merged = self
            .merger_norm
            .add_and_norm(&mut x, delta.as_ref())?
            .f_reshape([x.size()[0] / unit, -1])?;
        let inner = self.merger_in.forward(&merged, adapter)?.f_gelu("none")?;
        let merged = self.merger_out.forward(&inner, adapter)?;
        let reverse = upload(&plan.reverse, self.device)?;
        Ok(merged.f_index_select(0, &reverse)?)
    }

    /// Bytes of all weights that a pass with `adapter` reads.
    pub(super) fn weight_bytes(&self, adapter: AdapterIndex) -> usize {
        let blocks = self.blocks.iter().map(|block| {
            let mlp = block.mlp.weight_bytes(adapter);
            let norms = tensor_bytes(&block.norm1.weight) + tensor_bytes(&block.norm2.weight);
            block.qkv.bytes(adapter) + block.proj.bytes(adapter) + mlp + norms
        });
        let merger = self.merger_in.bytes(adapter) + self.merger_out.bytes(adapter);
        let ends = self.patch_embed.bytes(adapter) + tensor_bytes(&self.merger_norm.weight);
        blocks.sum::<usize>() + merger + ends
    }

    /// Rotary angles `[patches, head_dim]` f32 from (row, column) of each patch, in merge order.
    ///
    /// Reference:
    /// [`Qwen2_5_VLVisionRotaryEmbedding`](https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py#L123-L186),
    /// [`get_vision_position_ids`](https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/vision_utils.py#L81-L127).
    fn angles(&self, grids: &[Grid]) -> Result<Tensor> {
        let m = self.config.spatial_merge_size;
        let (mut rows, mut columns) = (Vec::new(), Vec::new());
        for g in grids {
            for _ in 0..g.t {
                for (top, left) in (0..g.h)
                    .step_by(m)
                    .flat_map(|y| (0..g.w).step_by(m).map(move |x| (y, x)))
                {
                    for (y, x) in (0..m).flat_map(|y| (0..m).map(move |x| (y, x))) {
                        rows.push((top + y) as f32);
                        columns.push((left + x) as f32);
                    }
                }
            }
        }
        let spatial = (self.config.head_dim / 2) as i64;
        let inverse = inverse_frequencies(self.config.rope_theta, spatial)?.f_to_device(self.device)?;
        let angle =
            |p: &[f32]| -> Result<Tensor> { Ok(upload(p, self.device)?.f_unsqueeze(1)?.f_mul(&inverse)?) };
        let (h, w) = (angle(&rows)?, angle(&columns)?);
        Ok(Tensor::f_cat(&[&h, &w, &h, &w], 1)?)
    }
}
