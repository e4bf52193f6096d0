//! Names of span attributes, in one place. Custom ones carry the prefix `skein.`.
//!
//! Cardinality: these stand on spans only, never on metrics, so ids are allowed.

/// The target of spans that are exported; only sampled requests create them.
pub const SPAN_TARGET: &str = "skein::trace";

macro_rules! keys {
    ($($(#[$doc:meta])* $name:ident = $key:literal;)*) => { $($(#[$doc])* pub const $name: &str = $key;)* };
}

keys! {
    /// The app's name.
    APP = "skein.app.name";
    /// The Machine's id.
    MACHINE = "skein.machine.id";
    /// A region's code.
    REGION = "skein.region";
    /// The node's name.
    NODE = "skein.node.name";
    /// The request's id (`Fly-Request-Id`).
    REQUEST_ID = "skein.request.id";
    /// How many replays came before this attempt.
    REPLAY_HOP = "skein.replay.hop";
    /// What the replay named: region, instance, app, elsewhere.
    REPLAY_KIND = "skein.replay.kind";
    /// Why the Machine was picked.
    ROUTE_REASON = "skein.route.reason";
    /// Milliseconds since the node of the Machine picked last confirmed what is known of it.
    ROUTE_AGE = "skein.route.facts_age_ms";
    /// The number of the node that passes the request on, around a link that is cut.
    RELAY = "skein.relay.node";
    /// How many Machines could have been picked.
    ROUTE_CANDIDATES = "skein.route.candidates";
    /// Why the other Machines were not picked, with how many each reason kept from it.
    ROUTE_PASSED_OVER = "skein.route.passed_over";
    /// What is started for a request that waits: a region, or a Machine.
    AUTOSTART = "skein.autostart";
    /// The snapshot that the decision was made on.
    SNAPSHOT_VERSION = "skein.snapshot.version";
    /// The code of an error that the proxy made.
    ERROR_CODE = "skein.error.code";
    /// OpenTelemetry: request method.
    METHOD = "http.request.method";
    /// OpenTelemetry: response status.
    STATUS = "http.response.status_code";
    /// OpenTelemetry: path.
    PATH = "url.path";
    /// OpenTelemetry: scheme.
    SCHEME = "url.scheme";
    /// OpenTelemetry: the client's address.
    CLIENT = "client.address";
    /// OpenTelemetry: the address that was dialled.
    SERVER_ADDRESS = "server.address";
    /// OpenTelemetry: the port that was dialled.
    SERVER_PORT = "server.port";
    /// OpenTelemetry: the other end of a connection.
    PEER = "network.peer.address";
    /// OpenTelemetry: HTTP version.
    PROTOCOL_VERSION = "network.protocol.version";
    /// OpenTelemetry: transport.
    TRANSPORT = "network.transport";
    /// OpenTelemetry: number of this resend, from 1.
    RESEND = "http.request.resend_count";
    /// OpenTelemetry: class of error.
    ERROR_TYPE = "error.type";
}
