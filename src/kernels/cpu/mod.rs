//! CPU kernels: one generic source over [`Lanes`], compiled for AVX-512, AVX2, SSE4.1 and any processor; see [`Level`].

mod attention;
mod awq;
mod fused;
mod lanes;
mod level;
mod matrix;
mod nf4;
mod shared;
mod team;

pub use self::attention::{AttentionShape, Partial, attend, combine, kv_split};
pub use self::awq::GroupedMatrix;
pub use self::fused::{
    Heads, add_rms_norm, applies, dropout, rms_norm, rms_norm_backward, rotate_halves, rotate_head, swiglu,
};
pub(crate) use self::fused::{rms_norm_row, swiglu_row};
pub use self::lanes::{CodeFactors, CodeTable, LANES, Lanes};
pub use self::level::{Kernel, Level};
pub use self::matrix::{Matrix, RowProduct};
pub use self::nf4::{BlockScales, CodedMatrix};
pub use self::shared::Shared;
pub use self::team::{Member, run};
