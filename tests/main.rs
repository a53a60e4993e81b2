//! One integration binary for everything, since each binary links libtorch.

mod suite;
