#![no_main]

use skein_core::config::Format;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| skein_fuzz::config(bytes, Format::Yaml));
