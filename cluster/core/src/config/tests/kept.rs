//! What has no effect in Skein, and what counts as absent.

use serde_json::json;

use super::*;

/// SPEC SVC-1: kept, reported by name, and held to its type.
#[test]
fn a_kept_key_of_a_wrong_type_is_an_error_at_its_place() {
    for (text, error) in [
        ("swap_size_mb = \"512\"\n", "1:16: error: swap_size_mb: expected a whole number"),
        ("console_command = 1\n", "1:19: error: console_command: expected a string, found the number 1"),
        ("statics = [1]\n", "1:12: error: statics[0]: expected a table, found the number 1"),
        (
            "[[statics]]\nguest_path = []\n",
            "2:14: error: statics[0].guest_path: expected a string, found a list",
        ),
        ("[[files]]\nprocesses = \"app\"\n", "2:13: error: files[0].processes: expected a list of strings"),
        ("[[mounts]]\nsource = 1\n", "2:10: error: mounts[0].source: expected a string"),
        ("[mount]\nscheduled_snapshots = \"yes\"\n", "2:23: error: mount.scheduled_snapshots: expected true"),
        ("[metrics]\nport = \"9090\"\n", "2:8: error: metrics.port: expected a whole number"),
        ("[build.args]\nA = 1\n", "2:5: error: build.args.A: expected a string, found the number 1"),
        ("[build]\nbuild_target = 1\n", "2:16: error: build.build_target: expected a string"),
        (
            "[build]\ncompression = \"zip\"\n",
            "2:15: error: build.compression: expected \"gzip\" or \"zstd\", found \"zip\"",
        ),
        ("[experimental]\nenable_consul = 1\n", "2:17: error: experimental.enable_consul: expected true"),
        (
            "[experimental]\nmetrics_port = \"1\"\n",
            "2:16: error: experimental.metrics_port: expected a whole",
        ),
        ("[deploy]\nrelease_command_vm = 1\n", "2:22: error: deploy.release_command_vm: expected a table"),
        (
            "[deploy]\nrelease_command_timeout = \"1 minute\"\n",
            "2:27: error: deploy.release_command_timeout: expected a duration",
        ),
        ("[vm]\ngpus = \"1\"\n", "2:8: error: vm.gpus: expected a whole number"),
        (
            "[[http_service.machine_checks]]\ncommand = \"curl\"\n",
            "2:11: error: http_service.machine_checks[0].command: expected a list of strings",
        ),
        (
            "[[services]]\nports = { port = 1 }\nmachine_checks = \"none\"\n",
            "3:18: error: services[0].machine_checks: expected a table or a list of tables",
        ),
    ] {
        let said = said(text);
        assert!(said.iter().any(|said| said.starts_with(error)), "{text}: {said:#?}");
        assert!(
            said.iter().any(|said| said.ends_with("this is kept and has no effect in Skein"))
                || text.contains("metrics_port"),
            "{text}: {said:#?}"
        );
    }
}

#[test]
fn an_unknown_key_of_a_kept_section_is_a_warning_that_names_the_nearest() {
    let text =
        "[[mounts]]\nsuorce = \"data\"\n[[machine_checks]]\nimages = \"curl\"\n[metrics]\nzzzzzz = 1\n";
    let said = said(text);
    for warning in [
        "2:1: warning: mounts[0].suorce: unknown key, it has no effect; did you mean `source`?",
        "4:1: warning: machine_checks[0].images: unknown key, it has no effect; did you mean `image`?",
        "6:1: warning: metrics.zzzzzz: unknown key, it has no effect",
    ] {
        assert!(said.iter().any(|said| said == warning), "{said:#?}");
    }
    assert_eq!(valid(text).kept["mounts"], json!([{"suorce": "data"}]), "kept all the same");
}

#[test]
fn kept_sections_that_flyctl_takes_are_taken_whole() {
    let text = "swap_size_mb = 512\nmachine_config = \"{}\"\n[[statics]]\nguest_path = \"/a\"\nurl_prefix = \"/\"\n\
                [[files]]\nguest_path = \"/f\"\nraw_value = \"x\"\n[[mounts]]\nsource = \"data\"\ndestination = \"/data\"\n\
                initial_size = 10\nsnapshot_retention = 5\nauto_extend_size_threshold = 80\nauto_extend_size_increment = \"1GB\"\n\
                auto_extend_size_limit = \"5GB\"\n[[vm]]\nkernel_args = \"no-hlt=true\"\n[deploy.release_command_vm]\n\
                memory = \"8g\"\n[[machine_checks]]\ncommand = [\"curl\"]\nkill_timeout = \"5s\"\n";
    let loaded = read(text);
    assert!(loaded.diagnostics.iter().all(|d| d.severity == Severity::Note), "{:#?}", loaded.diagnostics);
    let kept = loaded.config.unwrap().kept;
    assert_eq!(kept["mounts"][0]["initial_size"], "10");
    assert_eq!(kept["machine_checks"], json!([{"command": ["curl"], "kill_timeout": "5s"}]));
}

/// The ranges of flyctl's validation; `validate-mounts.toml` of its test data.
#[test]
fn a_mount_smaller_than_a_gigabyte_is_refused() {
    let mount = |key: &str, value: &str| read(&format!("[mounts]\n{key} = {value}\n")).is_valid();
    for good in ["1", "\"1\"", "\"1gb\"", "\"30GB\"", "\"1000 mb\"", "\"\""] {
        assert!(mount("initial_size", good), "{good}");
    }
    for wrong in ["0", "0.5", "\"15Mb\"", "\"unparseable\"", "true"] {
        assert!(!mount("initial_size", wrong), "{wrong}");
    }
    assert!(mount("snapshot_retention", "60") && !mount("snapshot_retention", "0"));
}

#[test]
fn an_empty_text_and_a_zero_count_as_absent_where_flyctl_leaves_them_out() {
    let text = "app = \"\"\nprimary_region = \"\"\nkill_signal = \"\"\n[deploy]\nstrategy = \"\"\n\
                [[restart]]\npolicy = \"always\"\nretries = 0\n\
                [http_service.concurrency]\nsoft_limit = 0\nhard_limit = 0\n";
    let loaded = read(text);
    assert!(loaded.diagnostics.is_empty(), "{:#?}", loaded.diagnostics);
    let config = loaded.config.unwrap();
    assert_eq!((config.app.clone(), config.primary_region, config.kill_signal.clone()), (None, None, None));
    assert_eq!(config.deploy.strategy, None);
    let machine = config.machine(&crate::ProcessGroup::app()).unwrap();
    assert_eq!(machine.restart.max_retries, None, "not: never restarted");
    let limits = machine.services[0].limits();
    assert_eq!((limits.soft, limits.hard), (20, None));
}
