//! pingora: the smallest proxy that the library makes, with Skein's allocator. It is a package of its
//! own (`bench/peers/pingora`): its dependencies are none of this workspace's.

use std::net::SocketAddr;
use std::path::Path;

use super::{Peer, Running, Start, free_port, loopback, version};
use crate::process::{Owned, on_core, typed};
use crate::{Args, PROXY_CORE};

pub(crate) const PROXY: Peer = Peer { name: "pingora", start };

/// Where `just bench` builds it.
const PROGRAM: &str = "target/peers/release/bench-pingora";

fn start(_: &Args, app: SocketAddr) -> anyhow::Result<Start> {
    let version = Path::new(PROGRAM).exists().then(|| version(PROGRAM, "--version")).flatten();
    let Some(version) = version else {
        return Ok(Start::Skipped("it is not built; `just bench-peers` builds it".to_owned()));
    };
    let address = loopback(free_port()?);
    let mut start = on_core(&[PROXY_CORE], PROGRAM);
    start.args([address.to_string(), app.to_string()]);
    let command = typed(&start);
    let process = Owned::start(&mut start)?;
    let pids = vec![process.pid()];
    Ok(Start::Running(Running {
        who: "pingora".into(),
        version,
        command,
        address,
        pids,
        _guard: Box::new(process),
    }))
}
