//! AWQ weights in AutoAWQ's GEMM layout.

mod grouped;
pub mod layout;
mod weight;

pub use self::grouped::{Grouped, Packed};
pub use self::weight::AwqWeight;
