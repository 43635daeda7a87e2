/** The digest of a block volume computed a second way, from its bytes alone, as replicator.proto and DESIGN say. */
import { blake3 } from '@napi-rs/blake-hash';

const granule = 65536;
const perPage = 256;
const zeros = Buffer.alloc(granule);

export function volumeDigest(bytes: Buffer): Buffer {
  const leaves: Buffer[] = [];
  for (let at = 0; at < bytes.length; at += granule) leaves.push(leaf(bytes.subarray(at, at + granule)));
  while (leaves.length % perPage !== 0) leaves.push(Buffer.alloc(16));
  const pages: Buffer[] = [];
  for (let at = 0; at < leaves.length; at += perPage) pages.push(short(Buffer.concat(leaves.slice(at, at + perPage))));
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(bytes.length));
  return short(Buffer.concat([...pages, size]));
}

function leaf(bytes: Buffer): Buffer {
  return bytes.equals(zeros.subarray(0, bytes.length)) ? Buffer.alloc(16) : short(bytes);
}

function short(bytes: Buffer): Buffer {
  return blake3(bytes).subarray(0, 16);
}
