use super::*;

fn known(machine: u64, region: &str, rtt_ms: u64, load: u32) -> Known {
    Known {
        machine: MachineId::from_bits(machine),
        region: region.parse().unwrap(),
        routable: true,
        excluded: false,
        alive: true,
        suspect: false,
        out: false,
        silent: false,
        age: Duration::ZERO,
        rtt: Duration::from_millis(rtt_ms),
        load,
        soft: 2,
        hard: Some(3),
    }
}

fn picks(known: &[Known], pick: u64) -> bool {
    let pick = Some(MachineId::from_bits(pick));
    let decided = Decided {
        request: 1,
        machine: None,
        regions: Vec::new(),
        known: known.to_vec(),
        pick,
        full: 0,
        goes: true,
    };
    decided_well(&decided, &Regions::default()).is_ok()
}

#[test]
fn of_the_nearest_region_with_room_the_less_loaded_below_soft_is_right() {
    let all = [known(1, "ams", 4, 1), known(2, "ams", 4, 0), known(3, "sin", 150, 0)];
    assert_eq!([1, 2, 3].map(|pick| picks(&all, pick)), [false, true, false]);
    let above = [known(1, "ams", 4, 2), known(2, "ams", 4, 1), known(3, "sin", 150, 0)];
    assert_eq!([1, 2, 3].map(|pick| picks(&above, pick)), [false, true, false]);
    let full = [known(1, "ams", 4, 3), known(2, "ams", 4, 3), known(3, "sin", 150, 0)];
    assert_eq!(
        [1, 2, 3].map(|pick| picks(&full, pick)),
        [false, false, true],
        "traffic leaves a full region"
    );
    let suspect = [Known { suspect: true, ..known(1, "ams", 4, 0) }, known(3, "sin", 150, 2)];
    assert_eq!([1, 3].map(|pick| picks(&suspect, pick)), [false, true], "suspect nodes come last");
    let farther = [known(1, "ams", 4, 1), known(2, "ams", 12, 0)];
    assert_eq!([1, 2].map(|pick| picks(&farther, pick)), [true, false], "beyond 5 ms nearness counts");
}

#[test]
fn what_cannot_take_a_request_is_never_right_and_nothing_is_right_only_without_candidates() {
    let cordoned = [Known { routable: false, ..known(1, "ams", 4, 0) }];
    assert!(!picks(&cordoned, 1));
    let mut none = Decided {
        request: 1,
        machine: None,
        regions: Vec::new(),
        known: cordoned.to_vec(),
        pick: None,
        full: 0,
        goes: false,
    };
    assert!(decided_well(&none, &Regions::default()).is_ok());
    none.known[0].routable = true;
    assert!(decided_well(&none, &Regions::default()).is_err());
    none.regions = vec!["eu".to_owned()];
    assert!(decided_well(&none, &Regions::default()).is_err());
    none.regions = vec!["sa".to_owned()];
    assert!(decided_well(&none, &Regions::default()).is_ok());
}
