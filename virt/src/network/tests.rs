//! Each in a thread of its own, which goes to a new namespace, and then to another one.

use super::*;
use nix::sched::{CloneFlags, unshare};
use std::process::Command;

fn sh(script: &str) -> String {
    let done = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(done.status.success(), "{script}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// What there is to be seen. Not everything is there to be found in each.
fn look(script: &str) -> String {
    // What follows from the state of links, which is told a little later.
    let state = "s/qdisc [a-z_]+ //; s/ state [A-Z]+//; s/NO-CARRIER,|,LOWER_UP|,M-DOWN|tentative|linkdown|dead//g; s/ +/ /g";
    sh(&format!("set +e; STATE='{state}'; {script}; true"))
}

/// Without what the kernel makes for IPv6, which follows the state of links a little later; of lifetimes, some of which passes
/// meanwhile, only thousands of seconds.
fn settled(mut network: Network) -> Network {
    network.routes.retain(|route| !routes::is_by_kernel(route));
    for address in &mut network.addresses {
        if let Some(Value::Record(life)) = address.get_mut("lifetime") {
            for seconds in life.values_mut() {
                if let Value::Number(seconds) = seconds {
                    *seconds = (*seconds + 500) / 1000;
                }
            }
        }
    }
    for filter in &mut network.filters {
        if let Some(Value::List(elements)) = filter.of.get_mut("elements") {
            elements.iter_mut().for_each(|element| drop(element.remove("expires")));
            // The kernel lists them in no order.
            elements.sort();
        }
    }
    network
}

/// Shows only what differs.
fn same(now: &str, before: &str) {
    let lacks = |text: &str, other: &str, sign: char| -> Vec<String> {
        let lines = text.lines().filter(|line| !other.lines().any(|there| there == *line));
        lines.map(|line| format!("{sign} {line}")).collect()
    };
    let differences = [lacks(before, now, '-'), lacks(now, before, '+')].concat();
    assert_eq!(differences, Vec::<String>::new());
    // It is only the order then.
    let place = now.lines().zip(before.lines()).find(|(now, before)| now != before);
    assert_eq!(place, None);
    assert_eq!(now, before);
}

/// What a sandbox makes.
fn new_namespace() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    sh("ip link set lo up");
}

fn read(given: &Given) -> (Network, Vec<String>) {
    let (network, troubles) = Network::read(given, true, true).unwrap();
    (network, troubles.into_iter().map(|trouble| format!("{}: {}", trouble.what, trouble.why)).collect())
}

/// Everything that is seen, but for what the kernel counts, and the addresses that it gives links a while after they are up.
const LOOK: &str = "exec 2>&1
    ip -d link | sed -E 's/ [a-z_]+_timer +[0-9.]+//g; s/usedbcqueuelen [0-9]+//' | sed -E \"$STATE\"
    ip addr | sed '/inet6 fe80:.*ff:fe/{N;d}' | sed -E 's/(valid|preferred)_lft [0-9]+sec/\\1/g' | sed -E \"$STATE\"
    ip -4 route show table all | sed -E \"$STATE\"
    ip -6 route show table all | grep -v 'proto kernel' | sed -E \"$STATE\"; ip rule; ip -6 rule
    ip neigh show nud permanent; ip neigh show proxy; bridge fdb show | grep -v ' self' | sort
    nft list ruleset | sed -E 's/expires [0-9a-z]+//g'";

/// What `script` has made is there again in another namespace, twice.
fn survives(script: &'static str) {
    survives_beside("", script);
}

/// The same where the sandbox has done something before.
fn survives_beside(sandbox: &'static str, script: &'static str) {
    std::thread::spawn(move || {
        new_namespace();
        sh(sandbox);
        sh(script);
        let ((before, troubles), said) = (read(&Given::default()), look(LOOK));
        assert_eq!(troubles, Vec::<String>::new());
        for _ in 0..2 {
            new_namespace();
            sh(sandbox);
            let json = serde_json::to_string_pretty(&before).unwrap();
            let image: Network = serde_json::from_str(&json).unwrap();
            assert_eq!(image, before);
            image.check().unwrap();
            image.make().unwrap_or_else(|e| panic!("{e}"));
            image.attached().unwrap();
            same(&look(LOOK), &said);
            let (after, troubles) = read(&Given::default());
            same(
                &serde_json::to_string_pretty(&settled(after)).unwrap(),
                &serde_json::to_string_pretty(&settled(before.clone())).unwrap(),
            );
            assert_eq!(troubles, Vec::<String>::new());
        }
    })
    .join()
    .unwrap();
}

#[test]
fn a_new_namespace_is_known_as_one() {
    std::thread::spawn(|| {
        new_namespace();
        let (network, troubles) = read(&Given::default());
        assert!(network.is_new(), "{network:#?}");
        assert_eq!(troubles, Vec::<String>::new());
        for change in [
            "ip link set lo mtu 1400",
            "ip link set lo mtu 65536; ip addr add 192.0.2.1/32 dev lo",
            "ip addr del 192.0.2.1/32 dev lo; ip route add 198.51.100.0/24 dev lo",
            "ip route del 198.51.100.0/24; ip rule add fwmark 7 table 100",
            "ip rule del fwmark 7; nft add table inet x",
            "nft delete table inet x; ip rule del priority 32767",
            "ip rule add priority 32767 table default protocol kernel; echo 1 > /proc/sys/net/ipv4/ip_forward",
        ] {
            sh(change);
            assert!(!read(&Given::default()).0.is_new(), "{change}");
        }
        sh("echo 0 > /proc/sys/net/ipv4/ip_forward");
        assert!(read(&Given::default()).0.is_new());
        sh("ip link set lo down");
        assert!(!read(&Given::default()).0.is_new());
    })
    .join()
    .unwrap();
}

#[test]
fn the_loopback_interface_comes_back() {
    survives("ip link set lo down mtu 1500 alias mine txqueuelen 7");
    survives("ip addr del 127.0.0.1/8 dev lo; ip addr add 127.0.0.2/8 dev lo; ip -6 addr del ::1/128 dev lo");
    survives("ip route del broadcast 127.255.255.255 table local");
}

#[test]
fn links_come_back_with_their_numbers_and_ties() {
    survives(
        "ip link add name left index 40 mtu 1400 address 02:00:00:00:00:01 type veth peer name right index 41
        ip link add br0 index 30 type bridge ageing_time 1000 stp_state 0 mcast_snooping 0
        ip link set right master br0; bridge link set dev right cost 7 learning off isolated on
        ip link add link left name mac0 type macvlan mode bridge; ip link add ifb0 numtxqueues 3 type ifb
        ip link set left up alias 'the left one' group 9; ip link set right up promisc on; ip link set br0 up
        ip link set mac0 up allmulticast on; ip link property add dev left altname sinister
        ip link add name right2 type veth peer name a_very_long_nam; ip link set right2 arp off up
        bridge fdb add 02:00:00:00:00:99 dev right master static",
    );
}

#[test]
fn devices_of_tun_come_back() {
    survives(
        "ip tuntap add tun0 mode tun user 1000; ip tuntap add tap0 mode tap group 1001 multi_queue vnet_hdr pi
        ip addr add 10.9.0.1 peer 10.9.0.2 dev tun0; ip link set tun0 up mtu 1380; ip link set tap0 up
        ip -6 addr add 2001:db8:9::1/64 dev tap0",
    );
}

#[test]
fn addresses_come_back_with_all_that_is_said_of_them() {
    survives(
        "ip link add va type veth peer name vb; ip link set va up; ip link set vb up
        ip addr add 10.1.0.1/24 brd + dev va label va:web; ip addr add 10.1.0.2/24 dev va; ip addr add 10.1.0.3/24 dev va
        ip addr add 10.2.0.1/24 dev va valid_lft 100000 preferred_lft 50000; ip addr add 10.3.0.1/16 dev va noprefixroute
        ip addr add 169.254.7.7/16 scope link dev vb; ip addr add 10.4.0.1/24 metric 77 dev vb
        ip -6 addr add 2001:db8:1::1/64 dev va nodad; ip -6 addr add 2001:db8:2::1/64 dev va nodad noprefixroute
        ip -6 addr add 2001:db8:3::1/128 dev va nodad preferred_lft 0 home
        ip -6 addr add 2001:db8:4::1/64 dev lo; ip -6 addr flush dev vb scope link
        for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
            ip -6 addr show tentative | grep -q inet6 || break; sleep 0.2
        done
        ip -6 addr change 2001:db8:1::1/64 dev va; ip -6 addr change 2001:db8:2::1/64 dev va noprefixroute
        ip -6 addr change 2001:db8:3::1/128 dev va preferred_lft 0 home",
    );
}

#[test]
fn routes_rules_and_neighbours_come_back() {
    survives(
        "ip link add va type veth peer name vb; ip link set va up; ip link set vb up; ip link set va addrgenmode none
        ip addr add 10.1.0.1/24 dev va; ip addr add 10.2.0.1/24 dev vb; ip -6 addr add 2001:db8:1::1/64 dev va nodad
        ip route add default via 10.1.0.254; ip route add 10.8.0.0/16 via 10.2.0.9 metric 5 mtu 1300 advmss 1200 src 10.1.0.1
        ip route add 10.8.0.0/16 dev vb scope link metric 6; ip route add 10.9.0.0/16 nexthop via 10.1.0.3 weight 3 nexthop via 10.2.0.3
        ip route add 10.99.0.0/16 via 192.0.2.77 dev va onlink; ip route add 10.0.0.0/8 dev vb table 1234 proto static
        ip route add blackhole 10.66.0.0/16; ip route add unreachable 10.67.0.0/16 metric 4; ip route add throw 10.68.0.0/16 table 77
        ip route add 10.70.0.0/16 via inet6 fe80::7 dev va
        ip -6 route add default via 2001:db8:1::fe; ip -6 route add 2001:db8:7::/48 via fe80::1 dev va metric 99 pref high
        ip -6 route add 2001:db8:8::/48 nexthop via fe80::2 dev va nexthop via fe80::3 dev vb
        ip -6 route add prohibit 2001:db8:9::/48; ip -6 route add 2001:db8:a::/48 dev vb table 4321 mtu 1290
        ip rule add fwmark 0x7/0xff table 1234 priority 100; ip rule add not from 10.1.0.0/24 iif va lookup 77 priority 101
        ip rule add ipproto tcp dport 80-90 uidrange 5-9 lookup 1234; ip rule del priority 32767
        ip -6 rule add to 2001:db8:7::/48 oif vb lookup 4321 suppress_prefixlength 16
        ip neigh add 10.1.0.7 lladdr 02:00:00:00:07:07 dev va; ip neigh add proxy 10.1.0.8 dev va
        ip -6 neigh add 2001:db8:1::7 lladdr 02:00:00:00:07:08 dev va nud permanent
        ip route del 10.1.0.255 table local",
    );
}

#[test]
fn packet_filters_come_back() {
    survives(
        "cat <<'END' | nft -f -
        table inet filter {
            comment \"a table\"
            counter hits { packets 7 bytes 700 }
            quota most { over 10 mbytes used 3 mbytes }
            set hosts { type ipv4_addr; flags interval, timeout; elements = { 10.0.0.0/8 timeout 30d, 192.0.2.1 timeout 30d } }
            set seen { type ipv4_addr . inet_service; size 1000; flags dynamic, timeout; timeout 30d; }
            map where { type inet_service : verdict; elements = { 22 : jump ssh, 80 : accept } }
            map ranges { type ipv4_addr . inet_service : verdict; flags interval; elements = { 10.0.0.0/24 . 1-5 : drop } }
            chain ssh { ip saddr 10.0.0.1 counter packets 3 bytes 33 accept comment \"mine\"; return; }
            chain in {
                type filter hook input priority filter; policy drop;
                ct state established,related accept
                tcp dport vmap @where
                tcp dport { 443, 8443 } counter name hits quota name most accept
                ip saddr @hosts update @seen { ip saddr . tcp dport } limit rate 5/second log prefix \"x \" reject with icmpx admin-prohibited
                iifname \"lo\" meta mark set 7 jump ssh
            }
        }
        table ip nat {
            chain post { type nat hook postrouting priority srcnat; oifname \"eth*\" masquerade random; }
            chain pre { type nat hook prerouting priority -100; tcp dport 80 dnat to 10.0.0.2:8080; }
        }
        table netdev early { chain lo { type filter hook ingress device lo priority 0; ip saddr 203.0.113.0/24 drop; }; }
        table ip6 off { flags dormant; }
END",
    );
}

#[test]
fn rules_of_iptables_come_back() {
    let before = "iptables-nft -A INPUT -p icmp -j DROP; iptables-nft -A INPUT -p tcp --dport 80 -m conntrack --ctstate NEW -j REJECT --reject-with tcp-reset
        iptables-nft -A INPUT ! -p udp -m limit --limit 3/min -m comment --comment hi -j LOG --log-prefix x
        iptables-nft -A INPUT -p tcp -m multiport --dports 1,2,3 -m mac --mac-source 02:00:00:00:00:01 -j MARK --set-mark 4
        iptables-nft -t nat -A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE; ip6tables-nft -A FORWARD -p tcp --syn -j TCPMSS --clamp-mss-to-pmtu";
    std::thread::spawn(move || {
        new_namespace();
        sh(before);
        let saved = "iptables-nft-save | grep -v '^#'; ip6tables-nft-save | grep -v '^#'";
        let ((network, troubles), said) = (read(&Given::default()), look(saved));
        assert_eq!(troubles, Vec::<String>::new());
        new_namespace();
        network.make().unwrap();
        same(&look(saved), &said);
    })
    .join()
    .unwrap();
}

#[test]
fn filters_know_connections_again() {
    std::thread::spawn(|| {
        let rules = "nft add table inet f; nft 'add chain inet f in { type filter hook input priority 0; }'
            nft add rule inet f in ct state established ct mark set 7 accept";
        new_namespace();
        sh(rules);
        let mut pairs = Vec::new();
        for address in ["127.0.0.1:80", "[::1]:80"] {
            let listener = std::net::TcpListener::bind(address).unwrap();
            let client = std::net::TcpStream::connect(address).unwrap();
            pairs.push((listener.accept().unwrap(), client, listener));
        }
        let (before, troubles) = read(&Given::default());
        assert_eq!(troubles, Vec::<String>::new());
        assert_eq!(before.connections.len(), 2, "{:#?}", before.connections);
        new_namespace();
        before.make().unwrap();
        let timeless = |network: Network| -> Vec<Record> {
            let mut all = network.connections;
            all.iter_mut().for_each(|entry| drop(entry.remove("timeout")));
            all.sort();
            all
        };
        let after = timeless(read(&Given::default()).0);
        assert_eq!(after, timeless(before));
        assert_eq!(after.iter().map(|entry| number(entry, "mark")).collect::<Vec<_>>(), [7, 7]);
    })
    .join()
    .unwrap();
}

#[test]
fn what_the_sandbox_has_made_stays() {
    survives_beside(
        "ip link add va type veth peer name vb; ip link set va up; ip link set vb up; ip addr add 10.1.0.1/24 dev va
        ip link set va addrgenmode none; ip link set vb addrgenmode none; ip -6 addr flush dev va; ip -6 addr flush dev vb
        nft add table ip nat; nft 'add chain ip nat out { type nat hook output priority 0; }'; nft add rule ip nat out accept",
        "ip addr add 10.1.0.2/24 dev va; ip route add default via 10.1.0.254; nft add table ip mine; ip link set va address 02:00:00:00:00:07
        ip link set vb address 02:00:00:00:00:08; nft add chain ip mine x",
    );
}

#[test]
fn links_are_known_as_given_by_their_names() {
    let given = Given { links: vec!["eth0".into(), "net%d".into()], hooks: false };
    for (name, has) in
        [("eth0", true), ("eth00", false), ("net7", true), ("net", false), ("net7x", false), ("net%d", false)]
    {
        assert_eq!(given.has(name), has, "{name}");
    }
}

#[test]
fn sets_of_addresses_are_named() {
    std::thread::spawn(|| {
        new_namespace();
        // IPSET_CMD_CREATE: protocol, name, type, its revision, family, and what else it is to have.
        let mut order = crate::netlink::Attributes::behind(&[libc::AF_INET as u8, 0, 0, 0]);
        order
            .put(1, &[7])
            .put_text(2, "hosts")
            .put_text(3, "hash:ip")
            .put(4, &[0])
            .put(5, &[libc::AF_INET as u8]);
        order.nest(7, &crate::netlink::Attributes::default());
        let mut netfilter = Netlink::open(protocols::NETFILTER).unwrap();
        let new = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        netfilter.order(0x602, new, order.bytes(), || "make a set").unwrap();
        assert_eq!(read(&Given::default()).1, ["ipset: sets of addresses can't be checkpointed"]);
    })
    .join()
    .unwrap();
}

#[test]
fn a_link_whose_number_is_taken_gets_another() {
    std::thread::spawn(|| {
        new_namespace();
        sh("ip link add va index 20 type veth peer name vb index 21; ip addr add 10.1.0.1/24 dev vb; ip link set vb up
            ip link add m0 link vb type macvlan mode bridge");
        let (network, _) = read(&Given::default());
        new_namespace();
        sh("ip link add other index 21 type ifb");
        network.make().unwrap();
        assert!(look("ip -o addr show dev vb").contains("10.1.0.1/24"));
        assert!(look("ip -o link show m0").contains("m0@vb"));
    })
    .join()
    .unwrap();
}

#[test]
fn links_of_the_sandbox_keep_addresses_of_their_own() {
    std::thread::spawn(|| {
        let given = Given { links: vec!["va".into()], hooks: false };
        let make = "ip link add va type veth peer name vb; ip link set va up; ip link set vb up";
        new_namespace();
        sh(&format!("{make}; ip addr add 10.1.0.1/24 dev va; ip route add default via 10.1.0.254"));
        let (network, troubles) = read(&given);
        assert_eq!(troubles, Vec::<String>::new());
        // Nobody can make the other end alone.
        let origins: Vec<_> = network.links.iter().map(|link| link.origin).collect();
        assert_eq!(origins, [Origin::Loopback, Origin::Given, Origin::Given]);
        for (sandbox, address, way) in [
            ("", "10.1.0.1/24", true),
            ("ip addr add 10.1.0.1/24 dev va; ip route add default via 10.1.0.254", "10.1.0.1/24", true),
            ("ip addr add 10.7.0.1/24 dev va", "10.7.0.1/24", false),
        ] {
            new_namespace();
            sh(&format!("{make}; {sandbox}"));
            network.make().unwrap();
            let (addresses, routes) = (look("ip -4 -o addr show dev va"), look("ip route show default"));
            assert!(addresses.contains(address) && addresses.lines().count() == 1, "{sandbox}: {addresses}");
            assert_eq!(routes.contains("10.1.0.254"), way, "{sandbox}: {routes}");
        }
        new_namespace();
        let said = network.make().unwrap_err().to_string();
        assert!(said.contains("link v") && said.contains("linux.netDevices"), "{said}");
    })
    .join()
    .unwrap();
}

#[test]
fn parameters_come_back() {
    survives(
        "cd /proc/sys/net; ip link add va type veth peer name vb; ip link set va up; ip link set vb up
        ip link set va addrgenmode none; ip link set vb addrgenmode none; ip -6 addr flush dev va; ip -6 addr flush dev vb
        echo 1 > ipv4/ip_forward; echo 0 > ipv4/conf/lo/forwarding; echo 2 > ipv4/conf/va/rp_filter; echo 777 > core/somaxconn
        echo '10 20' > ipv4/ping_group_range; echo 80 > ipv4/ip_unprivileged_port_start; echo 1 > ipv6/conf/all/forwarding
        echo 0 > ipv6/conf/vb/accept_ra; echo '4096 5000 6000' > ipv4/tcp_rmem; echo 3 > unix/max_dgram_qlen
        echo 77 > ipv4/neigh/va/ucast_solicit; echo 1 > ipv6/conf/default/disable_ipv6; echo 2607::4 > ipv6/conf/va/stable_secret
        echo 2607::5 > ipv6/conf/default/stable_secret; echo 2607::5 > ipv6/conf/lo/stable_secret
        echo 1 > ipv4/conf/all/accept_redirects; echo 1300 > ipv6/conf/lo/mtu; echo 1400 > ipv6/conf/vb/mtu",
    );
}
