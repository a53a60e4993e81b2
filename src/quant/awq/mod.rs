//! AWQ: four-bit weights whose scales are chosen by what they read.

mod calibration;
mod decoder;
mod folder;
mod grouped;
mod layer;
pub mod layout;
mod search;
mod shapes;
mod weight;

pub use self::calibration::pages_digest;
pub use self::folder::{AwqOptions, AwqReport, MeanError, REPORT, quantize_folder};
pub use self::grouped::{Grouped, Packed};
pub use self::layer::LinearError;
pub use self::weight::AwqWeight;
