"""What may befall a file: of its path, and of another to take it from."""

import shutil


def changed(change):
  """Returns what changes the bytes of a file."""
  return lambda path, _: path.write_bytes(change(path.read_bytes()))


def flipped(where):
  def flip(data):
    at = int(where * (len(data) - 1))
    bit = bytes([data[at] ^ 1 << at % 8]) if data else b''
    return data[:at] + bit + data[at + 1 :]

  return changed(flip)


def become(make):
  """Returns what puts something else in place of a file."""

  def harm(path, _):
    path.unlink()
    make(path)

  return harm


HARMS = {
    'first_bit': flipped(0),
    'bit_at_a_third': flipped(1 / 3),
    'middle_bit': flipped(1 / 2),
    'last_bit': flipped(1),
    'half': changed(lambda data: data[: len(data) // 2]),
    'one_byte_short': changed(lambda data: data[:-1]),
    'one_byte_more': changed(lambda data: data + b'\0'),
    'empty': changed(lambda data: b''),
    'zeros': changed(lambda data: bytes(len(data))),
    'zeros_at_the_end': changed(
        lambda data: data[: -len(data) // 4] + bytes(-(-len(data) // 4))
    ),
    'noise': changed(lambda data: bytes(255 - b for b in data)),
    'twice': changed(lambda data: data + data),
    'reversed': changed(lambda data: data[::-1]),
    'text': changed(lambda data: b'<html>quota exceeded</html>'),
    'deep': changed(lambda data: b'[' * 100_000),
    'removed': lambda path, _: path.unlink(),
    'a_folder': become(lambda path: path.mkdir()),
    'a_dangling_link': become(lambda path: path.symlink_to('nowhere')),
    'a_loop': become(lambda path: path.symlink_to(path.name)),
    'of_another_step': lambda path, other: shutil.copy(other, path),
}
