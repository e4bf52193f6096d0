//! Descriptors that this process was given: its children must not hold them open.

use std::io;

/// Marks every descriptor but the standard ones to be closed in children. What this program opened
/// itself is marked already.
pub(super) fn seal() -> io::Result<()> {
    let open: Vec<i32> = std::fs::read_dir("/dev/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    open.into_iter().filter(|descriptor| *descriptor > 2).try_for_each(seal_one)
}

#[allow(unsafe_code, reason = "descriptors that were inherited have no owner to borrow them from")]
fn seal_one(descriptor: i32) -> io::Result<()> {
    use nix::errno::Errno;
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    // SAFETY: only a flag is set; a number that is closed meanwhile is refused by the kernel.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(descriptor) };
    match fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)) {
        // The descriptor that the directory was read through.
        Ok(_) | Err(Errno::EBADF) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
