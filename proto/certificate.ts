/**
 * Keys, signing requests and certificates as both sides use them: P-256 with SHA-256, DER on the wire, PEM on disk.
 *
 * Pure but for randomness. Who may have which certificate is decided in master/authority.ts.
 */
import { createHash, createPrivateKey, webcrypto, X509Certificate } from 'node:crypto';

export const keyAlgorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;

export interface KeyPair {
  keys: webcrypto.CryptoKeyPair;
  /** PKCS #8. A secret. */
  keyPem: string;
}

export async function generateKeyPair(): Promise<KeyPair> {
  const keys = await webcrypto.subtle.generateKey(keyAlgorithm, true, ['sign', 'verify']);
  const pkcs8 = await webcrypto.subtle.exportKey('pkcs8', keys.privateKey);
  return { keys, keyPem: pemOf('PRIVATE KEY', Buffer.from(pkcs8)) };
}

/** @throws when the text is no P-256 key */
export async function importKeyPair(keyPem: string): Promise<KeyPair> {
  const der = createPrivateKey(keyPem).export({ type: 'pkcs8', format: 'der' });
  const privateKey = await webcrypto.subtle.importKey('pkcs8', der, keyAlgorithm, true, ['sign']);
  const { kty, crv, x, y } = await webcrypto.subtle.exportKey('jwk', privateKey);
  if (kty === undefined || crv === undefined || x === undefined || y === undefined) throw new Error('not an EC key');
  const publicKey = await webcrypto.subtle.importKey('jwk', { kty, crv, x, y }, keyAlgorithm, true, ['verify']);
  return { keys: { privateKey, publicKey }, keyPem };
}

/** PKCS #10. The subject is of no weight: who signs sets the name. */
export async function signingRequest({ keys }: KeyPair, name: string): Promise<Buffer> {
  // Loaded for a request alone: 200 modules, a third of what an agent's start would load, and needed once in months.
  await import('./reflect.ts');
  const { Pkcs10CertificateRequestGenerator } = await import('@peculiar/x509');
  const request = await Pkcs10CertificateRequestGenerator.create({
    name: [{ CN: [name] }],
    keys,
    signingAlgorithm: keyAlgorithm,
  });
  return Buffer.from(request.rawData);
}

/** Lower-case hex SHA-256 of the DER. */
export function fingerprintOf(certificateDer: Uint8Array): string {
  return createHash('sha256').update(certificateDer).digest('hex');
}

export function pemOf(label: string, der: Uint8Array): string {
  const lines =
    Buffer.from(der)
      .toString('base64')
      .match(/.{1,64}/g) ?? [];
  return `-----BEGIN ${label}-----\n${lines.join('\n')}\n-----END ${label}-----\n`;
}

/** Milliseconds since the epoch. @throws when the bytes are no certificate */
export function validityOf(certificate: string | Uint8Array): { notBeforeMs: number; notAfterMs: number } {
  const { validFrom, validTo } = new X509Certificate(certificate);
  return { notBeforeMs: Date.parse(validFrom), notAfterMs: Date.parse(validTo) };
}
