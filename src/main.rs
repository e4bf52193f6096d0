//! The program: everything is in the library, so that tests reach it.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    small_pages();
    skein::cli::main()
}

/// Keeps the kernel from backing this process with huge pages where its setting is "always".
///
/// A node's heap is a few megabytes in many places; each place would count for two. The allocator's
/// feature `no_thp` is the other half: it asks for none where the setting is "madvise". What a
/// Machine runs is not held to it (`skein machine-init` undoes it).
fn small_pages() {
    // A sandbox may forbid the call: the process is larger then, and works.
    nix::sys::prctl::set_thp_disable(true).ok();
}
