//! The vision tower: patches → merged image tokens.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::{
    VisionConfig,
    attention::Runs,
    extents::Extents,
    layers::{Mlp, RmsNorm, Weights, rotate},
    linear::{Linear, LinearWeight},
    model::{GoOn, ask},
    positions::WindowPlan,
};
use crate::Result;
use crate::kernels::cpu::Heads;
use crate::processing::Grid;
use crate::torch::{autograd::recomputed, upload};

/// The published models' constant; the vision tower's config has no key for it.
const EPS: f64 = 1e-6;

struct Block {
    norm1: RmsNorm,
    qkv: Linear,
    proj: Linear,
    norm2: RmsNorm,
    mlp: Mlp,
}

/// What a block's attention needs beside its weights.
struct Frame {
    heads: usize,
    dim: usize,
    /// Rotary tables, `[rows, dim]` each.
    cos: Tensor,
    sin: Tensor,
    /// Rows that attend to each other.
    runs: Runs,
}

// SAFETY: its tables are only read, which libtorch allows any thread.
unsafe impl Sync for Frame {}

// SAFETY: a block is shared by its tower and the graph of a training alone, whose backward pass runs while the tower's thread
// waits for it.
unsafe impl Sync for Block {}

impl Block {
    /// Whether an adapter in training is attached.
    fn trains(&self) -> bool {
        let linears = [
            &self.qkv,
            &self.proj,
            &self.mlp.gate,
            &self.mlp.up,
            &self.mlp.down,
        ];
        let mut adapters = linears.into_iter().filter_map(|linear| linear.lora.as_ref());
        adapters.any(|lora| lora.a.requires_grad())
    }

    /// x: `[rows, hidden]`, same shape out.
    fn whole(&self, x: &Tensor, frame: &Frame) -> Result<Tensor> {
        let x = x.f_add(&self.attention(&self.norm1.forward(x)?, frame)?)?;
        let delta = self.mlp.forward(&self.norm2.forward(&x)?)?;
        Ok(x.f_add(&delta)?)
    }

    /// Attention inside the frame's runs; x: `[rows, hidden]`, same shape out.
    fn attention(&self, x: &Tensor, frame: &Frame) -> Result<Tensor> {
        let (rows, heads, dim) = (x.size()[0], frame.heads as i64, frame.dim as i64);
        let turned = Heads {
            count: 2 * frame.heads,
            dim: frame.dim,
        };
        // Queries and keys, which come first; cos and sin repeat for both.
        let qkv =
            rotate(self.qkv.forward(x)?, turned, &frame.cos, &frame.sin)?.f_view([rows, 3, heads, dim])?;
        // One node of the graph, whose backward pass puts the three gradients together at once.
        let parts = qkv.f_unbind(1)?;
        let [q, k, v] = parts.as_slice() else {
            unreachable!("a dimension of three");
        };
        self.proj.forward(&frame.runs.attention(q, k, v, false)?)
    }
}

/// Patches in, image tokens as the language model wants them out.
pub(super) struct VisionTower {
    config: VisionConfig,
    patch_embed: Linear,
    /// Shared with the graph of a training.
    blocks: Vec<Arc<Block>>,
    merger_norm: RmsNorm,
    merger_in: Linear,
    merger_out: Linear,
    /// Sizes of pages; the language model's positions follow from the same.
    pub(super) extents: Extents,
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
            extents: Extents::new(w.device, w.reductions, c.spatial_merge_size),
            config: config.clone(),
            kind: w.kind,
            device: w.device,
        })
    }

    /// pixel_values: `[patches, patch_values]` f32, all images one after the other → `[merged tokens, out_hidden]`.
    ///
    /// `recompute`: where the tower is in training its blocks keep their inputs alone, and are computed again in the backward
    /// pass.
    ///
    /// `go_on` is asked before every block.
    pub(super) fn forward(
        &self,
        pixel_values: &Tensor,
        grids: &[Grid],
        recompute: bool,
        go_on: &mut GoOn<'_>,
    ) -> Result<Tensor> {
        let c = &self.config;
        let unit = (c.spatial_merge_size * c.spatial_merge_size) as i64;
        let pages = self.extents.of(grids)?;
        let plan = WindowPlan::new(&pages, c.window_tokens());
        let order = upload(&plan.order, self.device)?;
        let in_window_order = |x: &Tensor| -> Result<Tensor> {
            let rows = x.size()[0];
            let grouped = x.f_reshape([rows / unit, unit, -1])?;
            Ok(grouped.f_index_select(0, &order)?.f_reshape([rows, -1])?)
        };
        let pixels = pixel_values.f_to_device(self.device)?.f_to_kind(self.kind)?;
        let mut x = in_window_order(&self.patch_embed.forward(&pixels)?)?;
        let angles = in_window_order(&self.angles(grids)?)?;
        let (cos, sin) = (angles.f_cos()?, angles.f_sin()?);
        let windows: Vec<i64> = plan.lengths.iter().map(|&n| n as i64 * unit).collect();
        let images: Vec<i64> = pages
            .iter()
            .flat_map(|page| std::iter::repeat_n(page.frame_patches as i64, page.frames))
            .collect();
        let frame = |lengths| -> Result<Arc<Frame>> {
            Ok(Arc::new(Frame {
                heads: c.num_heads,
                dim: c.head_dim,
                cos: cos.shallow_clone(),
                sin: sin.shallow_clone(),
                runs: Runs::new(lengths, self.kind, self.device)?,
            }))
        };
        let (images, windows) = (frame(images)?, frame(windows)?);
        let recompute = recompute && self.blocks.iter().any(|block| block.trains());
        if recompute {
            // What is computed again gets its gradient through its input.
            x = x.set_requires_grad(true);
        }
        let mut delta = None;
        for (i, block) in self.blocks.iter().enumerate() {
            ask(go_on)?;
            let frame = match c.fullatt_block_indexes.contains(&i) {
                true => &images,
                false => &windows,
            };
            if recompute {
                let (block, frame) = (Arc::clone(block), Arc::clone(frame));
                x = recomputed(&x, move |x| block.whole(x, &frame))?;
                continue;
            }
            let normed = block.norm1.after(&mut x, delta.as_ref())?;
            let attended = block.attention(&normed, frame)?;
            let normed = block.norm2.after(&mut x, Some(&attended))?;
            delta = Some(block.mlp.forward(&normed)?);
        }
        let merged = self
            .merger_norm
            .after(&mut x, delta.as_ref())?
            .f_reshape([x.size()[0] / unit, -1])?;
        let merged = self
            .merger_out
            .forward(&self.merger_in.forward(&merged)?.f_gelu("none")?)?;
        let reverse = upload(&plan.reverse, self.device)?;
        Ok(merged.f_index_select(0, &reverse)?)
    }

    /// Rotary angles `[patches, head_dim]` f32 by (row, column) of each patch, in merge order.
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

/// 1 / theta^(2i / dim), `[dim / 2]` f32, computed as transformers does.
pub(super) fn inverse_frequencies(theta: f64, dim: i64) -> Result<Tensor> {
    let exponent =
        Tensor::f_arange_start_step(0, dim, 2, (Kind::Float, Device::Cpu))?.f_div_scalar(dim as f64)?;
    let base = Tensor::f_full([] as [i64; 0], theta, (Kind::Float, Device::Cpu))?;
    Ok(base.f_pow(&exponent)?.f_reciprocal()?)
}
