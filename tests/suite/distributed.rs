//! Processes that train together: real ones, over the loopback interface.

use std::net::TcpListener;
use std::process::{Command, Stdio};

use medical_vision::distributed::{Group, Place};
use tch::{Device, Kind, Tensor};

const MEMBERS: usize = 3;

/// Runs in a process of its own, started by the test below; by itself it has nothing to do.
#[test]
fn a_member() {
    if std::env::var_os("MVP_TEST_MEMBER").is_none() {
        return;
    }
    let place = Place::from_env().unwrap().unwrap();
    let rank = place.rank;
    let group = Group::join(place, Device::Cpu).unwrap();
    for kind in [Kind::Float, Kind::Double] {
        let mut sum = Tensor::arange(1000, (kind, Device::Cpu)) * (rank as i64 + 1);
        group.sum(&mut sum).unwrap();
        assert!(sum.equal(&(Tensor::arange(1000, (kind, Device::Cpu)) * 6)));
    }
    let mut first = Tensor::full([2, 3], rank as i64 + 7, (Kind::Float, Device::Cpu));
    group.broadcast(&mut first).unwrap();
    assert!(first.equal(&Tensor::full([2, 3], 7, (Kind::Float, Device::Cpu))));
    group.barrier().unwrap();
}

#[test]
fn processes_add_up_and_hand_round() {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let members: Vec<_> = (0..MEMBERS)
        .map(|rank| {
            Command::new(std::env::current_exe().unwrap())
                .args(["suite::distributed::a_member", "--exact"])
                .env("MVP_TEST_MEMBER", "1")
                .env("WORLD_SIZE", MEMBERS.to_string())
                .env("RANK", rank.to_string())
                .env("MASTER_ADDR", "127.0.0.1")
                .env("MASTER_PORT", port.to_string())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for member in members {
        let output = member.wait_with_output().unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }
}
