//! Keys that have no effect in Skein: they are kept, said so by name, and still held to the shape that
//! flyctl holds them to (SPEC SVC-1).

use super::diagnostic::Report;
use super::item::{Bare, Fields, Item};
use super::size::amount;
use super::tree::Value;

/// Keys and their shapes.
pub(super) type Keys = &'static [(&'static str, Shape)];

/// What flyctl wants of a value that has no effect in Skein.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    /// Keys of older versions: nothing is known of them.
    Any,
    Text,
    /// A text, or a number that counts as its text.
    Scalar,
    /// A text, or none.
    OneOf(&'static [&'static str]),
    Flag,
    /// A whole number, from and to.
    Whole(u32, u32),
    /// A duration; a bare number is nanoseconds.
    Duration,
    /// A size of at least 1 GB; a bare number is gigabytes.
    Gigabytes,
    Texts,
    /// A list of texts, or one of them.
    Words,
    /// A table of anything, or of texts.
    Table(Option<Keys>),
    TextTable,
    /// A table or a list of tables.
    Tables(Keys),
}

use Shape::{
    Any, Duration, Flag, Gigabytes, OneOf, Scalar, Table, Tables, Text, TextTable, Texts, Whole, Words,
};

const MANY: u32 = 1_000_000_000;

/// Top-level keys outside networking.
pub(super) const TOP: Keys = &[
    ("console_command", Text),
    ("container", Text),
    ("files", Tables(FILE)),
    ("host_dedication_id", Text),
    ("machine_checks", Tables(MACHINE_CHECK)),
    ("machine_config", Text),
    ("statics", Tables(STATIC)),
    ("swap_size_mb", Whole(0, MANY)),
    ("user_data", Any),
];

const FILE: Keys = &[
    ("guest_path", Text),
    ("local_path", Text),
    ("processes", Texts),
    ("raw_value", Text),
    ("secret_name", Text),
];

const STATIC: Keys =
    &[("guest_path", Text), ("index_document", Text), ("tigris_bucket", Text), ("url_prefix", Text)];

pub(super) const MACHINE_CHECK: Keys = &[
    ("command", Texts),
    ("entrypoint", Texts),
    ("image", Text),
    ("kill_signal", Text),
    ("kill_timeout", Duration),
];

pub(super) const MOUNT: Keys = &[
    ("auto_extend_size_increment", Gigabytes),
    ("auto_extend_size_limit", Gigabytes),
    ("auto_extend_size_threshold", Whole(0, 99)),
    ("destination", Text),
    ("initial_size", Gigabytes),
    ("processes", Texts),
    ("scheduled_snapshots", Flag),
    ("snapshot_retention", Whole(1, 60)),
    ("source", Text),
];

pub(super) const METRICS: Keys =
    &[("https", Flag), ("path", Text), ("port", Whole(0, 65_535)), ("processes", Texts)];

pub(super) const BUILD: Keys = &[
    ("args", TextTable),
    ("builder", Text),
    ("buildpacks", Texts),
    ("builtin", Text),
    ("compose", Table(Some(&[("file", Text)]))),
    ("compression", OneOf(&["gzip", "zstd"])),
    ("compression_level", Whole(0, 9)),
    ("dockerfile", Text),
    ("ignorefile", Text),
    ("settings", Table(None)),
];

pub(super) const EXPERIMENTAL: Keys = &[
    ("allowed_public_ports", Any),
    ("attached", Table(Some(&[("secrets", Table(Some(&[("export", TextTable)])))]))),
    ("auto_rollback", Flag),
    ("enable_consul", Flag),
    ("enable_etcd", Flag),
    ("lazy_load_images", Flag),
    ("machine_config", Text),
    ("private_network", Any),
];

pub(super) const DEPLOY: Keys = &[
    ("release_command_timeout", Duration),
    ("release_command_vm", Table(Some(RELEASE_VM))),
    ("seed_command", Text),
];

pub(super) const VM: Keys = &[
    ("gpu_kind", Text),
    ("gpus", Whole(0, MANY)),
    ("host_dedication_id", Text),
    ("kernel_args", Words),
    ("max_memory_mb", Whole(0, MANY)),
    ("persist_rootfs", OneOf(&["never", "always", "restart"])),
];

const RELEASE_VM: Keys = &[
    ("cpu_kind", OneOf(&["shared", "performance"])),
    ("cpus", Whole(0, MANY)),
    ("gpu_kind", Text),
    ("gpus", Whole(0, MANY)),
    ("host_dedication_id", Text),
    ("kernel_args", Words),
    ("max_memory_mb", Whole(0, MANY)),
    ("memory", Scalar),
    ("memory_mb", Whole(0, MANY)),
    ("persist_rootfs", OneOf(&["never", "always", "restart"])),
    ("processes", Texts),
    ("size", Text),
];

/// Reports what is not of the shape, and keys that it does not have.
pub(super) fn check(item: &Item<'_>, shape: Shape, report: &mut Report<'_>) {
    match shape {
        Any => {}
        Text => {
            item.string("a string", report);
        }
        Scalar => {
            item.scalar("a string", report);
        }
        OneOf(texts) if !item.is_blank() => {
            item.one_of(texts, report);
        }
        OneOf(_) => {}
        Flag => {
            item.boolean(report);
        }
        Whole(from, to) => {
            item.whole(from..=to, report);
        }
        Duration => {
            item.duration(Bare::Nanoseconds, report);
        }
        Gigabytes => gigabytes(item, report),
        Words if matches!(item.node.value, Value::String(_)) => {}
        Texts | Words => {
            item.strings("a list of strings", report);
        }
        Table(None) => {
            item.fields(report);
        }
        Table(Some(keys)) => item.fields(report).into_iter().for_each(|fields| table(fields, keys, report)),
        TextTable => {
            let fields = item.fields(report);
            let entries = fields.iter().flat_map(Fields::all).collect::<Vec<_>>();
            for (_, _, item) in entries {
                item.string("a string", report);
            }
        }
        Tables(keys) => item.tables(report).into_iter().for_each(|fields| table(fields, keys, report)),
    }
}

/// The same for each key of a table.
pub(super) fn table(mut fields: Fields<'_>, keys: Keys, report: &mut Report<'_>) {
    for (name, shape) in keys {
        if let Some(item) = fields.take(name) {
            check(&item, *shape, report);
        }
    }
    fields.finish(report);
}

fn gigabytes(item: &Item<'_>, report: &mut Report<'_>) {
    if item.is_blank() {
        return;
    }
    let amount = if let Value::String(text) = &item.node.value {
        amount(text, 1000, 3)
    } else {
        item.node.value.integer().map(|number| number as f64)
    };
    let enough = amount.is_some_and(|amount| amount >= 1.0);
    if !enough {
        item.expected("a size of at least 1 GB such as \"10gb\"", report);
    }
}
