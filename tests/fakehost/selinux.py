"""SELinux's policy, as selinuxfs answers for it; types stand for whole labels.

fake/selinux/policy has one rule a line, as in the policy's own language:

    allow SOURCE TARGET:CLASS PERMISSION PERMISSION...    the class may be *, and then all is
    type_transition SOURCE TARGET:CLASS RESULT
    permissive SOURCE
"""

from __future__ import annotations

import errno

from vfio_console_hook.errors import HostError

from .tree import Tree

POLICY = "fake/selinux/policy"
SELINUX = "sys/fs/selinux"
# Numbers of classes and permissions, made up: each policy that is loaded has its own.
CLASSES = {
    "process": ("fork", "transition", "sigchld"),
    "file": ("ioctl", "read", "write", "create", "getattr", "execute", "execute_no_trans",
             "entrypoint", "open"),
    "dir": ("write", "create", "getattr", "add_name", "search"),
    "capability": ("chown", "sys_module", "sys_ptrace", "sys_admin"),
}  # fmt: skip


def install(tree: Tree, *rules: str) -> None:
    """Load a policy, and enforce it."""
    tree.put(f"{SELINUX}/enforce", "1")
    tree.put("etc/selinux/config", "SELINUX=enforcing")
    for number, (kind, permissions) in enumerate(CLASSES.items(), start=5):
        tree.put(f"{SELINUX}/class/{kind}/index", str(number))
        for bit, permission in enumerate(permissions, start=1):
            tree.put(f"{SELINUX}/class/{kind}/perms/{permission}", str(bit))
    tree.put(POLICY, "\n".join(rules))


def answer(tree: Tree, path: str, question: str) -> str:
    """Security/selinux/selinuxfs.c: sel_write_access, sel_write_create."""
    source, target, number = question.split()
    kind = list(CLASSES)[int(number) - 5]
    rules = [line.split() for line in (tree.read(POLICY) or "").splitlines()]
    if path == f"{SELINUX}/create":
        return _created(rules, source, target, kind)
    if path != f"{SELINUX}/access":
        raise HostError.of("ask", f"/{path}", OSError(errno.EINVAL, ""))
    allowed = 0
    for words in rules:
        if words[0] != "allow" or words[1] != _type(source):
            continue
        name, _, of = words[2].partition(":")
        if name in (_type(target), "*") and of in (kind, "*"):
            given = CLASSES[kind] if of == "*" else words[3:]
            allowed |= sum(1 << CLASSES[kind].index(one) for one in given)
    permissive = ["permissive", _type(source)] in rules
    # "%x %x %x %x %u %x": allowed, decided, auditallow, auditdeny, seqno, flags
    return f"{allowed:x} ffffffff 0 ffffffff 3 {int(permissive):x}"


def _created(rules: list[list[str]], source: str, target: str, kind: str) -> str:
    """Security/selinux/ss/services.c, security_compute_sid.

    Without a rule a process keeps its domain, and an object gets the type of its directory.
    """
    for words in rules:
        if words[:3] == ["type_transition", _type(source), f"{_type(target)}:{kind}"]:
            return _with_type(source, words[3]) + "\0"
    return (source if kind == "process" else target) + "\0"


def _type(label: str) -> str:
    return label.split(":")[2]


def _with_type(label: str, name: str) -> str:
    user, role, _, level = label.split(":", 3)
    return f"{user}:{role}:{name}:{level}"
