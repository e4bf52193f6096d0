//! nginx: one worker, connections to the app kept, no access log.

use std::net::SocketAddr;
use std::path::Path;

use super::{Peer, Running, Start, free_port, loopback, missing, version};
use crate::process::{Owned, on_core, typed};
use crate::{Args, PROXY_CORE};

pub(crate) const PROXY: Peer = Peer { name: "nginx", start: one };
/// One nginx behind another one, both on the same core and without TLS between them.
pub(crate) const TWICE: Peer = Peer { name: "nginx", start: two };

fn one(_: &Args, app: SocketAddr) -> anyhow::Result<Start> {
    chain("nginx", app, 1)
}

fn two(_: &Args, app: SocketAddr) -> anyhow::Result<Start> {
    chain("nginx twice, plain", app, 2)
}

fn chain(who: &str, app: SocketAddr, hops: usize) -> anyhow::Result<Start> {
    let Some(version) = version("nginx", "-v") else { return Ok(missing("nginx-light")) };
    let dir = tempfile::tempdir()?;
    let (mut address, mut processes, mut command) = (app, Vec::new(), String::new());
    for hop in 0..hops {
        let listen = loopback(free_port()?);
        let root = dir.path().join(hop.to_string());
        std::fs::create_dir(&root)?;
        let config = root.join("nginx.conf");
        std::fs::write(&config, configuration(&root, listen, address))?;
        let mut start = on_core(&[PROXY_CORE], "nginx");
        start.arg("-c").arg(&config).arg("-e").arg(root.join("error.log"));
        command = typed(&start);
        processes.push(Owned::start(&mut start)?);
        address = listen;
    }
    let pids = processes.iter().map(Owned::pid).collect();
    let guard = Box::new((processes, dir));
    Ok(Start::Running(Running { who: who.into(), version, command, address, pids, _guard: guard }))
}

fn configuration(root: &Path, listen: SocketAddr, app: SocketAddr) -> String {
    let root = root.display();
    format!(
        "daemon off; master_process off; worker_processes 1; worker_rlimit_nofile 20000; pid {root}/pid;
events {{ worker_connections 19000; }}
http {{
  access_log off;
  client_body_temp_path {root}/b; proxy_temp_path {root}/p; fastcgi_temp_path {root}/f;
  uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;
  upstream app {{ server {app}; keepalive 128; keepalive_requests 100000000; }}
  server {{
    listen {listen} backlog=4096;
    keepalive_requests 100000000;
    location / {{
      proxy_pass http://app;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
      proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    }}
  }}
}}
"
    )
}
