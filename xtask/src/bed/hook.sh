# Runs on the host with the guest's root filesystem as $1 and the directory of the build as $2,
# after the packages are installed.
set -eu
root=$1
out=$2

echo bed >"$root/etc/hostname"
cat >"$root/etc/hosts" <<END
127.0.0.1 localhost
127.0.1.1 bed
::1 localhost ip6-localhost ip6-loopback
END
cat >"$root/etc/network/interfaces" <<END
auto lo
iface lo inet loopback

auto eth0
iface eth0 inet static
    address 10.0.2.15/24
    gateway 10.0.2.2
END
# Nothing outside answers: a refusal at once instead of a wait for every look-up.
echo 'nameserver 127.0.0.1' >"$root/etc/resolv.conf"
echo '/dev/vda / ext4 noatime 0 0' >"$root/etc/fstab"

mkdir -p -m 700 "$root/root/.ssh"
cp "$out/key.pub" "$root/root/.ssh/authorized_keys"
rm -f "$root"/etc/ssh/ssh_host_*
mv "$out/host_key" "$root/etc/ssh/ssh_host_ed25519_key"
cp "$out/host_key.pub" "$root/etc/ssh/ssh_host_ed25519_key.pub"
# Sessions are many and short; PAM would make each one a login.
cat >"$root/etc/ssh/sshd_config.d/bed.conf" <<END
MaxSessions 100
MaxStartups 100
UseDNS no
UsePAM no
END

# What a machine without a network and with a life of minutes does not need. ifupdown-pre waits for
# every device; the one that is needed is there from the initrd on.
chroot "$root" systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer fstrim.timer \
    e2scrub_all.timer e2scrub_reap.service systemd-timesyncd.service systemd-pstore.service \
    getty@tty1.service serial-getty@ttyS0.service ifupdown-pre.service

# The kernel finds its root disk and its network with these alone. Later updates of the initrd,
# which packages ask for, would never be booted: the machine starts with the one beside the image.
version=$(ls "$root/lib/modules")
printf 'MODULES=list\nCOMPRESS=zstd\nCOMPRESSLEVEL=1\nRESUME=none\n' \
    >"$root/etc/initramfs-tools/conf.d/bed"
printf 'virtio_pci\nvirtio_blk\nvirtio_net\n' >>"$root/etc/initramfs-tools/modules"
chroot "$root" mkinitramfs -o /boot/initrd "$version"
mv "$root/boot/initrd" "$out/initrd"
cp "$root/boot/vmlinuz-$version" "$out/vmlinuz"
sed -i 's/^update_initramfs=.*/update_initramfs=no/' \
    "$root/etc/initramfs-tools/update-initramfs.conf"

# Packages to install without a network. apt runs on the host, with mmdebstrap's own settings.
if [ -s "$out/repository" ]; then
    # shellcheck disable=SC2046
    APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get --quiet --yes --no-install-recommends \
        --download-only install $(cat "$out/repository")
    mkdir -p "$root/var/local/repo"
    mv "$root"/var/cache/apt/archives/*.deb "$root/var/local/repo"
    (cd "$root/var/local/repo" && dpkg-scanpackages --multiversion . >Packages)
fi
rm -rf "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/* "$root"/var/lib/apt/lists/*
if [ -s "$out/repository" ]; then
    echo 'deb [trusted=yes] file:/var/local/repo ./' >"$root/etc/apt/sources.list"
    chroot "$root" apt-get --quiet update
fi
