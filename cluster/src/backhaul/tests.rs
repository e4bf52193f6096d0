mod bench;
mod faults;
mod strangers;
mod streams;
