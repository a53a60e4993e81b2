//! Four-bit formats: NF4 against bitsandbytes, AWQ against AutoAWQ's layout.

mod awq;
mod nf4;
