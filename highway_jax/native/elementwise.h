// Elementary functions of vectors, accurate to about two units in the last place, with polynomials of the Cephes
// library (Moshier). All of them propagate NaN, by which a diverged run is noticed.

#pragma once

#include "vectors.h"

INLINE Vector exponential(Vector x) {
  x = x > 88.0f ? fill(88.0f) : x;
  x = x < -87.0f ? fill(-87.0f) : x;
  const Vector shifted = x * 1.44269504088896341f + 12582912.0f;  // adding 1.5 * 2^23 rounds to a whole number
  const Vector n = shifted - 12582912.0f;
  const Vector r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vector p = fill(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Ints power = ((Ints)shifted << 23) + 0x3f800000;
  return p * (Vector)power;
}

INLINE Vector sigmoid(Vector z) { return 1.0f / (1.0f + exponential(-z)); }

INLINE Vector hyperbolic_tangent(Vector z) {
  const Ints bits = (Ints)z, sign = bits & INT32_MIN, rest = bits & INT32_MAX;
  const Vector size = (Vector)rest;
  const Vector large = 1.0f - 2.0f / (exponential(2.0f * size) + 1.0f);
  const Ints large_bits = (Ints)large | sign;
  const Vector s = z * z;
  Vector p = fill(-5.70498872745e-3f);
  p = p * s + 2.06390887954e-2f;
  p = p * s - 5.37397155531e-2f;
  p = p * s + 1.33314422036e-1f;
  p = p * s - 3.33332819422e-1f;
  return size < 0.625f ? z + z * s * p : (Vector)large_bits;
}

// The activation by its index in highway_jax.functional.activations, and its derivative in terms of its value.

INLINE Vector activation(Vector z, int32_t index) {
  return index == 0 ? (z < 0.0f ? Vector{} : z) : hyperbolic_tangent(z);
}

INLINE Vector derivative(Vector h, int32_t index) {
  return index == 0 ? (h > 0.0f ? fill(1.0f) : Vector{}) : 1.0f - h * h;
}
