// Deep learning from first principles: the whole public C++ API.
#pragma once

#include <deepnet/error.hpp>
#include <deepnet/image.hpp>
#include <deepnet/init.hpp>
#include <deepnet/io.hpp>
#include <deepnet/layer.hpp>
#include <deepnet/layers.hpp>
#include <deepnet/loss.hpp>
#include <deepnet/model.hpp>
#include <deepnet/optimizer.hpp>
#include <deepnet/recurrent.hpp>
#include <deepnet/runtime.hpp>
#include <deepnet/tensor.hpp>
#include <deepnet/trace.hpp>
#include <deepnet/trainer.hpp>
