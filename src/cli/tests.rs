//! Lines that scripts may rely on (DESIGN section 8), and lines that are refused.

use clap::{CommandFactory, Parser};

use super::Cli;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("skein").chain(line.split_whitespace()))
}

#[test]
fn the_command_line_is_consistent_with_itself() {
    Cli::command().debug_assert();
}

#[test]
fn every_documented_line_is_understood() {
    let machine = "01234567abcdef";
    let lines = [
        "up",
        "up --name two --regions iad:2,lhr,nrt --latency none --trace-sample 0.5 --no-demo --detach --json",
        "up --nodes 5 --isolation portable --config fly.toml -- node server.js",
        "down --name two",
        "trace 01JNRQ9VVKJ7HZFMJWJB3M3RYN-iad --json",
        "explain 01JNRQ9VVKJ7HZFMJWJB3M3RYN-iad --json",
        "chaos list --json",
        "deploy -c fly.toml --regions iad,lhr --json -- node server.js --port 3",
        "deploy --external 127.0.0.1:3000",
        "--cluster two status --json",
        "status -a shop",
        "endpoint hello --port 443 --node iad-1 --json",
        "endpoint hello --from lhr --protocol tcp",
        "machine run -a shop --region iad --port 80:3000/tcp:http -- node server.js",
        "machines list -a shop --json",
        "machines list",
        &format!("machines start {machine}"),
        &format!("machines stop {machine} --signal SIGTERM --timeout 10s"),
        &format!("machines suspend {machine}"),
        &format!("machines restart {machine}"),
        "checks list -a shop --json",
        "checks list",
        &format!("machines destroy --force {machine} {machine}"),
        &format!("machines cordon {machine}"),
        &format!("machines uncordon {machine}"),
        "apps create shop -o personal --network blue",
        "apps list --json",
        "apps destroy shop",
        "orgs create shop",
        "orgs list",
        "tokens create -o personal --read-only",
        "tokens list",
        "tokens revoke 01JNRQ9VVKJ7HZFMJWJB3M3RYN",
        "config validate -c fly.toml --json",
        "config show --machine app",
        "ips list -a shop",
        "ips allocate-v4 --shared -a shop",
        "ips allocate-v6 -a shop",
        "ips release -a shop 203.0.113.9",
        "node drain iad-1",
        "node restart iad-1",
        "node token --uses 3 --ttl 30m",
        "node run --join TOKEN --region iad",
        "node run --config node.toml",
        "regions --json",
    ];
    for line in lines {
        if let Err(error) = parse(line) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn what_is_wrong_on_the_line_is_refused_before_anything_is_called() {
    let lines = [
        "",
        "machines stop",
        "apps create Not_A_Name",
        "endpoint",
        "endpoint hello --port 0",
        "endpoint hello --node iad-1 --from lhr",
        "tokens create",
        "node run",
        "node run --config node.toml --region iad",
        "node token --uses 0",
        "deploy --external 127.0.0.1:1 -- node",
        "ips release -a shop",
        "ips release -a shop not-an-ip",
        "machine run -a shop --port donuts -- x",
        "frobnicate",
    ];
    for line in lines {
        let refused = parse(line);
        assert_eq!(refused.err().map(|error| error.exit_code()), Some(2), "{line}");
    }
}

#[test]
fn what_stands_after_the_dashes_is_the_commands_own() {
    let cli = parse("machine run -a shop -- server --json --cluster x").unwrap();
    assert!(!cli.json);
    assert_eq!(cli.cluster, None);
}
