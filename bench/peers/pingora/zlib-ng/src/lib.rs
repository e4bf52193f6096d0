//! zlib's functions under zlib-ng's name.
pub use libz_sys::*;
