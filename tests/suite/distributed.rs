//! Process groups of real processes, over the loopback interface.

use std::net::TcpListener;
use std::process::{Command, Stdio};

use medical_vision::distributed::{ProcessGroup, ProcessInfo};
use tch::{Device, Kind, Tensor};

const WORLD_SIZE: usize = 3;

/// One rank, in a process that the test below starts; does nothing otherwise.
#[test]
fn one_rank() {
    if std::env::var_os("MVP_TEST_RANK").is_none() {
        return;
    }
    let info = ProcessInfo::from_env().unwrap().unwrap();
    let rank = info.rank;
    let group = ProcessGroup::join(info, Device::Cpu).unwrap();
    for kind in [Kind::Float, Kind::Double] {
        let mut sum = Tensor::arange(1000, (kind, Device::Cpu)) * (rank as i64 + 1);
        group.all_reduce(&mut sum).unwrap();
        assert!(sum.equal(&(Tensor::arange(1000, (kind, Device::Cpu)) * 6)));
    }
    let mut first = Tensor::full([2, 3], rank as i64 + 7, (Kind::Float, Device::Cpu));
    group.broadcast(&mut first).unwrap();
    assert!(first.equal(&Tensor::full([2, 3], 7, (Kind::Float, Device::Cpu))));
    group.barrier().unwrap();
}

#[test]
fn ranks_reduce_and_broadcast() {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let processes: Vec<_> = (0..WORLD_SIZE)
        .map(|rank| {
            Command::new(std::env::current_exe().unwrap())
                .args(["suite::distributed::one_rank", "--exact"])
                .env("MVP_TEST_RANK", "1")
                .env("WORLD_SIZE", WORLD_SIZE.to_string())
                .env("RANK", rank.to_string())
                .env("MASTER_ADDR", "127.0.0.1")
                .env("MASTER_PORT", port.to_string())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for process in processes {
        let output = process.wait_with_output().unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }
}
