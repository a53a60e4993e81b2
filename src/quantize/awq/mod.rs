//! AWQ: activation-aware four-bit quantization.

mod calibration;
mod decoder;
mod folder;
mod layer;
mod search;
mod shapes;

pub use self::calibration::pages_digest;
pub use self::folder::{AwqOptions, AwqReport, MeanError, REPORT, quantize_folder};
pub use self::layer::LinearError;
