//! S3: Express with the fly-replay middleware of `litefs-js`, two Machines in two regions
//! (examples/express). Its `getAllInstances()` needs DNS and comes with the private network.

use std::fs;

use serde_json::{Value, json};

use crate::install::node_project;
use crate::support::cluster::{Home, open_to_all, text};
use crate::support::{Cluster, Reply, Request, SOON, eventually, skipped};

#[test]
fn s3_a_write_at_the_replica_is_answered_by_the_primary() {
    let home = Home::new();
    let folder = home.path().join("express");
    if let Err(reason) = node_project("examples/express", &folder) {
        return skipped("S3", &reason);
    }
    let data = home.path().join("litefs");
    fs::create_dir(&data).unwrap();
    open_to_all(&data);
    let config = fs::read_to_string(folder.join("fly.toml")).unwrap();
    let own = config.replace("/tmp/skein-notebook", data.to_str().unwrap());
    assert_ne!(own, config, "fly.toml names the folder that all Machines share");
    fs::write(folder.join("fly.toml"), own).unwrap();

    let args = ["--regions", "iad,lhr", "--config", "fly.toml", "--trace-sample", "1"];
    let cluster = Cluster::up_in(home, &folder, &args, &["node", "server.js"]);
    let machines = cluster.machines("notebook");
    assert_eq!(machines.len(), 2, "one per node: {machines:?}");
    let (primary, replica) = (
        cluster.machines_in("notebook", "iad")[0].clone(),
        cluster.machines_in("notebook", "lhr")[0].clone(),
    );
    let edge = cluster.endpoint("notebook", "lhr-1");

    // A read stays where it is.
    let read = eventually("the replica serves", SOON, || match Request::get(edge, "/").send() {
        Ok(reply) if reply.status == 200 && reply.field("machine") == replica => Ok(reply),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(read.json()["primary"], false);
    assert_eq!(read.json()["notes"], json!([]));

    let note = json!({"text": "written in London"});
    let write = || {
        let request = Request::post(edge, "/notes", note.to_string());
        request.header("content-type", "application/json").header("x-client", "s3").reply()
    };
    let reply = write();
    assert_eq!(reply.status, 200, "the client sees no 409: {reply:?}");
    nothing_of_the_replay(&reply);
    let json = reply.json();
    assert_eq!(json["machine"], *primary);
    assert_eq!(json["method"], "POST");
    assert_eq!(json["body"], note, "the whole body was replayed");
    assert_eq!(json["headers"]["x-client"], "s3");
    let source = text(&json["headers"]["fly-replay-src"]);
    assert!(source.contains(&format!("instance={replica}")), "{source}");
    assert!(reply.header("set-cookie").is_some_and(|cookie| cookie.starts_with("txnum=")));

    // The replica sees what the primary wrote, and the client's cookie makes it wait for it.
    let cookie = reply.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let read = Request::get(edge, "/").header("cookie", &cookie).ok();
    nothing_of_the_replay(&read);
    assert_eq!(read.json()["notes"][0]["text"], note["text"]);
    assert_eq!(read.field("machine"), replica);

    // At the primary's own edge nothing is replayed.
    let local = Request::post(cluster.endpoint("notebook", "iad-1"), "/notes", note.to_string());
    let local = local.header("content-type", "application/json").ok();
    assert_eq!(local.field("machine"), primary);
    assert_eq!(local.json()["headers"].get("fly-replay-src"), None::<&Value>);

    // What the app refuses comes from the app.
    let bad = Request::post(edge, "/notes", "{").header("content-type", "application/json").reply();
    assert_eq!(bad.status, 400);
    assert_eq!(bad.header("skein-error"), None);
}

#[track_caller]
fn nothing_of_the_replay(reply: &Reply) {
    let leaked: Vec<_> = reply.headers.iter().filter(|(name, _)| name.starts_with("fly-replay")).collect();
    assert!(leaked.is_empty(), "{leaked:?}");
}
