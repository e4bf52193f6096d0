//! HAProxy: one thread, connections to the app kept and shared, no log.

use std::net::SocketAddr;

use super::{Peer, Running, Start, free_port, loopback, missing, version};
use crate::process::{Owned, on_core, typed};
use crate::{Args, PROXY_CORE};

pub(crate) const PROXY: Peer = Peer { name: "haproxy", start };

fn start(_: &Args, app: SocketAddr) -> anyhow::Result<Start> {
    let Some(version) = version("haproxy", "-v") else { return Ok(missing("haproxy")) };
    let dir = tempfile::tempdir()?;
    let address = loopback(free_port()?);
    let config = dir.path().join("haproxy.cfg");
    std::fs::write(&config, configuration(address, app))?;
    let mut start = on_core(&[PROXY_CORE], "haproxy");
    start.args(["-q", "-db", "-f"]).arg(&config);
    let command = typed(&start);
    let process = Owned::start(&mut start)?;
    let pids = vec![process.pid()];
    let guard = Box::new((process, dir));
    Ok(Start::Running(Running { who: "haproxy".into(), version, command, address, pids, _guard: guard }))
}

fn configuration(listen: SocketAddr, app: SocketAddr) -> String {
    format!(
        "global
  nbthread 1
  no strict-limits
  ulimit-n 20000
  maxconn 11000
defaults
  mode http
  option http-keep-alive
  option forwardfor
  http-reuse always
  timeout connect 3s
  timeout client 75s
  timeout server 75s
  timeout http-keep-alive 75s
frontend clients
  bind {listen} backlog 4096
  default_backend app
backend app
  server app {app} pool-max-conn 128
"
    )
}
