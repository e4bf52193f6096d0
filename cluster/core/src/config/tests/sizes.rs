//! Sizes of Machines.

use serde_json::json;

use super::*;

#[test]
fn sizes_have_the_presets_of_flyctl() {
    for (section, size) in [
        ("", ("shared", 1, 256)),
        ("size = \"shared-cpu-4x\"", ("shared", 4, 1024)),
        ("size = \"performance-2x\"", ("performance", 2, 4096)),
        ("gpu_kind = \"a10\"\nmemory = \"64gb\"", ("performance", 8, 65_536)),
        ("memory = 512", ("shared", 1, 512)),
        ("memory = \"1.5 GB\"", ("shared", 1, 1536)),
        (
            "size = \"\"\nmemory = \"\"\ncpu_kind = \"\"\ncpus = 0\nmemory_mb = 0\ngpu_kind = \"\"",
            ("shared", 1, 256),
        ),
        ("memory = \"8gb\"\nmemory_mb = 1024\ncpus = 3", ("shared", 3, 1024)),
    ] {
        let guest = machine(&format!("[[vm]]\n{section}\n"), "app").guest.unwrap();
        let is = (guest.cpu_kind.as_deref().unwrap(), guest.cpus.unwrap(), guest.memory_mb.unwrap());
        assert_eq!(is, size, "{section}");
    }
    assert_eq!(machine("", "app").guest, None);
    let guest = serde_json::to_value(machine("[vm]\nsize = \"a10\"\ngpus = 2\n", "app").guest).unwrap();
    assert_eq!(
        guest,
        json!({"cpu_kind": "performance", "cpus": 8, "memory_mb": 32768, "gpu_kind": "a10", "gpus": 2})
    );
}

#[test]
fn a_size_that_does_not_exist_is_an_error_that_names_the_nearest() {
    for (size, near) in [
        ("shared-cpu-3x", "; did you mean \"shared-cpu-1x\"?"),
        ("shared-cpu-2", "; did you mean \"shared-cpu-2x\"?"),
        ("performence-4x", "; did you mean \"performance-4x\"?"),
        ("dedicated", ""),
    ] {
        let said = said(&format!("[[vm]]\nsize = \"{size}\"\n"));
        let start =
            format!("2:8: error: vm[0].size: there is no size {size:?}{near}; the sizes are shared-cpu-1x, ");
        assert!(said.len() == 1 && said[0].starts_with(&start), "{said:#?}");
    }
    for wrong in ["\"0\"", "\"-1g\"", "\"1x\"", "0", "-5", "99999999999", "\"900pb\"", "true"] {
        let said = said(&format!("[[vm]]\nmemory = {wrong}\n"));
        assert!(said[0].starts_with("2:10: error: vm[0].memory: expected a"), "{wrong}: {said:#?}");
    }
}

#[test]
fn a_dedicated_host_is_that_of_the_section_else_of_the_file() {
    let text = "host_dedication_id = \"top\"\n[processes]\na = \"\"\nb = \"\"\n[[vm]]\nprocesses = [\"a\"]\n\
                [[vm]]\nprocesses = [\"b\"]\nhost_dedication_id = \"own\"\n";
    for (group, id) in [("a", "top"), ("b", "own")] {
        assert_eq!(machine(text, group).guest.unwrap().rest["host_dedication_id"], id, "{group}");
    }
}
